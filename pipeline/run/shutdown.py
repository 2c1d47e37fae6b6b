"""A scheduler's SIGTERM: the step is finished or dropped, a checkpoint is written, and the process ends with 143.

What mutates weights is wrapped in `finish_first`; there, a request to stop waits for the end of the step, which asks
`requested()`. Everywhere else it raises at once, for what was saved before is whole. After GRACE_S it no longer waits:
the last checkpoint is good for the same bytes, it only costs the steps since.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GRACE_S = 20.0
LAST_S = 28.0  # a scheduler that waits 30 s kills next: leave by ourselves, whatever the main thread is stuck in
EXIT = 143


class Stopped(BaseException):
    """Asked to stop. Not an Exception: no border that catches what untrusted code raises may catch it."""


@dataclass(slots=True)
class _State:
    asked: bool = False
    waiting: int = 0  # depth of finish_first
    late: bool = False


_state = _State()


def install() -> None:
    """Answer SIGTERM from now on. Only the main thread of a process can."""
    signal.signal(signal.SIGTERM, _on_term)


def requested() -> bool:
    return _state.asked


def late() -> bool:
    """Whether the grace is over: a request raises wherever the step is."""
    return _state.late


def check() -> None:
    """The end of a step: stop here if asked to."""
    if _state.asked:
        raise Stopped


@contextlib.contextmanager
def finish_first() -> Iterator[None]:
    """A request to stop waits until the caller asks `requested()`."""
    _state.waiting += 1
    try:
        yield
    finally:
        _state.waiting -= 1


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside finish_first, a stretch that changes nothing worth finishing, as sampling: a request raises here."""
    depth, _state.waiting = _state.waiting, 0
    try:
        check()
        yield
    finally:
        _state.waiting = depth


def _on_term(signum: int, frame: Any) -> None:
    first = not _state.asked
    _state.asked = True
    if first:
        print("asked to stop: saving a checkpoint", flush=True)
        _after(GRACE_S, _too_late)
        _after(LAST_S, lambda: os._exit(EXIT))
    if _state.waiting == 0 or _state.late:
        raise Stopped


def _after(seconds: float, then: Any) -> None:
    timer = threading.Timer(seconds, then)
    timer.daemon = True
    timer.start()


def _too_late() -> None:
    _state.late = True
    os.kill(os.getpid(), signal.SIGTERM)  # the handler runs in the main thread and now raises
