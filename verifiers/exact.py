"""The completion is one of the gold texts, after its thinking, up to white space; and nothing else.

A number in the data is its text, 5 is `5` and 0.5 is `0.5`; a bool is `true` or `True`. 5.0 and 1e30 have several texts
and are refused.
"""

from __future__ import annotations

import math
import re
from typing import NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed
from verifiers._math.text import final_answer


class Task(TypedDict):
    gold: str | float | bool | list[str | float | bool]  # any of them is right
    ignore_case: NotRequired[bool]
    final: NotRequired[bool]  # compare the final answer (box, <answer> or last line) and not the whole completion


_DECIMAL = re.compile(r"-?\d+\.\d+")


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _texts(gold: object) -> list[str]:
    """The texts of one gold. Raises ValueError for a struct, an empty text and a number with several texts."""
    if isinstance(gold, bool):
        return [str(gold).lower(), str(gold)]
    number = isinstance(gold, int) or (isinstance(gold, float) and math.isfinite(gold))
    if not (number or (isinstance(gold, str) and gold.strip())):
        raise ValueError("gold must be a text, a number or a list of them, none of them empty")
    if isinstance(gold, float) and (gold.is_integer() or not _DECIMAL.fullmatch(repr(gold))):
        raise ValueError(f"gold {gold!r} can be written in several ways; give it as text")
    return [str(gold)]


def verify(completion: str, task: Task) -> Verdict:
    gold = task["gold"]
    golds = [text for each in (gold if isinstance(gold, list | tuple) else [gold]) for text in _texts(each)]
    if not golds:
        raise ValueError("gold must be a text or several, none of them empty")
    final = task.get("final", False)
    text = final_answer(completion, box_needed=False) if final else after_thinking(completion)
    if not text or not text.strip():
        return malformed("the answer is empty")
    wanted = {_spaced(gold) for gold in golds}
    given = _spaced(text)
    if task.get("ignore_case", False):
        wanted, given = {gold.casefold() for gold in wanted}, given.casefold()
    return passed() if given in wanted else failed("not one of the gold texts")


_ABC = {"gold": ["a b c", "A-B-C"]}
EXAMPLES = (
    Example("right", " a b\n c ", _ABC),
    Example("right", "<think>hm</think>\nA-B-C", _ABC),
    Example("right", "ÉTÉ", {"gold": "été", "ignore_case": True}),
    Example("right", r"So \boxed{a b c}", _ABC | {"final": True}),
    Example("right", "-5", {"gold": -5}),
    Example("right", "0.25", {"gold": 0.25}),
    Example("right", "true", {"gold": True}),
    Example("wrong", "a b c d", _ABC),
    Example("wrong", "5.0", {"gold": 5}),
    Example("wrong", "A B C", _ABC),
    Example("wrong", "ab c", _ABC),
    Example("malformed", " \n", _ABC),
    Example("malformed", "<think>a b c", _ABC),
    Example("malformed", "a b c", _ABC | {"final": True}),
    Example("hostile", "a b c\na b c", _ABC),
    Example("hostile", "a b c\x00", _ABC),
    Example("hostile", "a b c or A-B-C", _ABC),
)
