"""math-verify for golds outside our grammar, in a process that may be killed at any time.

Each comparison is a fork of one loaded worker, ended by a kernel timer after CPU_S of CPU time, whatever it is doing
then: an answer that costs more is not the gold. Asked only about answers that use the very commands our grammar lacks.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

from verifiers._math.parse import KNOWN_COMMANDS

CPU_S = 0.7
WALL_S = 20.0  # start included; beyond it the machine is stalled, and that is nobody's wrong answer
MAX_CHARS = 400
_HARMLESS = re.compile(r"[A-Za-z0-9\\{}()\[\].,+\-*/^_=<>|!&%:; ]*")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_TOWER = re.compile(r"\^[^+,=]*\^|!|\d{5}")
_WORDS = re.compile(r"__|import|lambda|eval|exec|open|\bos\b|sys|getattr")


class Stalled(RuntimeError):
    """The worker gave no answer although it did not use up its CPU time."""


class Worker:
    """One math-verify process, started when first asked and again after each kill. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def equal(self, gold: str, answer: str) -> bool:
        """Raises Stalled."""
        if not _strange(gold) or _strange(gold) != _strange(answer) or _TOWER.search(answer):
            return False
        if not all(len(text) <= MAX_CHARS and _HARMLESS.fullmatch(text) for text in (gold, answer)):
            return False
        if _WORDS.search(answer):
            return False
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                self._end()
                raise Stalled("math-verify ended before it was asked") from None
            ready, _, _ = select.select([process.stdout], [], [], WALL_S)
            line = process.stdout.readline() if ready else b""
            if not line.endswith(b"\n"):
                self._end()
                if not ready:
                    raise Stalled(f"math-verify gave no answer within {WALL_S:g} s")
            return line == b"true\n"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("math_verify_worker.py")), str(CPU_S)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
            )
            atexit.register(self._end)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # what was not yet sent to the killed worker
                        pipe.close()
        atexit.unregister(self._end)


def _strange(text: str) -> frozenset[str]:
    """The commands our own grammar lacks."""
    return frozenset(_COMMAND.findall(text)) - KNOWN_COMMANDS


WORKER = Worker()


def available() -> bool:
    return importlib.util.find_spec("math_verify") is not None
