"""math-verify for golds outside our grammar, in a process that may be killed at any time.

Called only for answers that use the very commands our grammar lacks: for the gold `\\lfloor x \\rfloor`, an answer
without a floor is wrong, and needs no algebra to be so. An answer that costs more than CPU_S is not the gold either.
"""

from __future__ import annotations

import importlib.util
import re

from verifiers._killable import Killable, Killed
from verifiers._math.parse import KNOWN_COMMANDS

CPU_S = 0.7
GOLD_CPU_S = 5.0  # a gold is compared with itself once, and its fault must not depend on the load of the machine
MAX_CHARS = 400
_HARMLESS = re.compile(r"[A-Za-z0-9\\{}()\[\].,+\-*/^_=<>|!&%:; ]*")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_TOWER = re.compile(r"\^[^+,=]*\^|!|\d{5}")
_WORDS = re.compile(r"__|import|lambda|eval|exec|open|\bos\b|sys|getattr")
WORKER = Killable("verifiers._math.math_verify_worker:equal", cpu_s=CPU_S, memory_mb=2048)
GOLD_WORKER = Killable("verifiers._math.math_verify_worker:equal", cpu_s=GOLD_CPU_S, memory_mb=2048)


def available() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def worth_comparing(gold: str, answer: str) -> bool:
    if not _strange(gold) or _strange(gold) != _strange(answer) or _TOWER.search(answer) or _WORDS.search(answer):
        return False
    return all(len(text) <= MAX_CHARS and _HARMLESS.fullmatch(text) is not None for text in (gold, answer))


def equal(gold: str, answer: str) -> bool:
    """Raises verifiers._killable.Stalled if the machine, not the answer, is at fault."""
    return _compare(WORKER, gold, answer)


def equals_itself(gold: str) -> bool:
    """Raises verifiers._killable.Stalled if the machine, not the gold, is at fault."""
    return _compare(GOLD_WORKER, gold, gold)


def _compare(worker: Killable, gold: str, answer: str) -> bool:
    if not worth_comparing(gold, answer):
        return False
    try:
        return bool(worker.ask([gold, answer]))
    except (Killed, ValueError):  # too costly, or an error of the library on this answer: not the gold
        return False


def _strange(text: str) -> frozenset[str]:
    """The commands our own grammar lacks."""
    return frozenset(_COMMAND.findall(text)) - KNOWN_COMMANDS
