"""SIGTERM and Ctrl-C: the step is finished or dropped, a checkpoint is written, and the process ends with 143 or 130.

A second Ctrl-C stops at once.

What mutates weights is wrapped in `finish_first`; there, a request to stop waits for the end of the step, which asks
`requested()`. Everywhere else it raises at once, since what was saved before is complete. After GRACE_S it no longer
waits: a run resumed from the last checkpoint ends in the same bytes, it only repeats the steps since.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE_S = 20.0
LAST_S = 28.0  # a scheduler that waits 30 s kills next: leave by ourselves, whatever the main thread is stuck in
EXIT, INTERRUPTED = 143, 130
CHECKPOINT_S = 300.0  # wall time between checkpoints, at most
WRITTEN_PER_S = 320e6  # bytes of a checkpoint, with their hashes: 3.2 GB took 9 to 10 s
FIRST_PER_S = WRITTEN_PER_S / 10  # the first is due when writing it adds a tenth


class Stopped(BaseException):
    """A stop was requested. Not an Exception: no handler of untrusted code's exceptions may catch it."""


@dataclass(slots=True)
class _State:
    stop_requested: bool = False
    waiting: int = 0  # depth of finish_first
    late: bool = False
    interrupted: bool = False  # by Ctrl-C, not by SIGTERM
    run_dir: Path | None = None


_state = _State()


def install(run_dir: Path | None = None) -> None:
    """Handle SIGTERM and Ctrl-C from now on. Only the main thread of a process can. run_dir: see `stop_line`."""
    _state.run_dir = run_dir
    signal.signal(signal.SIGTERM, _on_term)
    signal.signal(signal.SIGINT, _on_interrupt)


def requested() -> bool:
    return _state.stop_requested


def late() -> bool:
    """Whether the grace period is over: a request then raises wherever the step is."""
    return _state.late


def exit_code() -> int:
    return INTERRUPTED if _state.interrupted else EXIT


def stop_line(what: str = "") -> str:
    """What to print at the end of a stopped run: where the same command continues."""
    what = what or ("interrupted" if _state.interrupted else "stopped on SIGTERM")
    where = resume_points(_state.run_dir) if _state.run_dir is not None else []
    if not where:
        return f"{what}; run the same command to resume"
    return f"{what}; run the same command to resume: {'; '.join(where)}"


def resume_points(run_dir: Path) -> list[str]:
    """Per unfinished stage of a run, the step from which the same command continues, as its checkpoints say."""
    out = []
    for begun in sorted(run_dir.rglob("begun.json")):
        stage = begun.parent
        if (stage / "manifest.json").exists():
            continue
        trainings = sorted((stage / "checkpoints").glob("training-*"), key=lambda path: path.stat().st_mtime)
        saved = [*(stage / "checkpoints").glob("step-*"), *(trainings[-1].glob("checkpoint-*") if trainings else [])]
        steps = [int(path.name.rpartition("-")[2]) for path in saved if (path / "index.json").is_file()]
        part = f", {trainings[-1].name.removeprefix('training-')}" if trainings else ""
        out.append(f"{stage.relative_to(run_dir)}{part} from step {max(steps, default=0) + 1}")
    return out


@dataclass(slots=True)
class CheckpointClock:
    """When a checkpoint of so many bytes is due: CHECKPOINT_S after the last one, and the first as soon as so much work
    is done that writing it adds little: of a small model after the first step."""

    size: int = 0
    since: float = field(default_factory=lambda: time.monotonic())
    """When the last one was saved, or the process began to train."""
    first: bool = True

    def due(self) -> bool:
        limit = first_due(self.size) if self.first else CHECKPOINT_S
        return time.monotonic() - self.since >= limit

    def saved(self) -> None:
        self.since, self.first = time.monotonic(), False


def first_due(size: int) -> float:
    """Whole seconds after which the first checkpoint of `size` bytes is due."""
    return min(size // FIRST_PER_S, CHECKPOINT_S)


def checkpoints_in(seconds: float, size: int) -> int:
    """How many checkpoints of `size` bytes the clock asks for in so many seconds of training."""
    first = first_due(size)
    return 0 if seconds < first else 1 + int((seconds - first) / CHECKPOINT_S)


def trained_bytes(*models: Any) -> int:
    """Bytes that a checkpoint of these models takes at the least: weights and Adam's two moments in float32."""
    return 12 * sum(p.numel() for model in models if model is not None for p in model.parameters() if p.requires_grad)


def check() -> None:
    """The end of a step: stop here if requested."""
    if _state.stop_requested:
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


def _on_interrupt(signum: int, frame: Any) -> None:
    if _state.interrupted:
        raise KeyboardInterrupt
    _state.interrupted = not _state.stop_requested
    _on_term(signum, frame)


def _on_term(signum: int, frame: Any) -> None:
    first = not _state.stop_requested
    _state.stop_requested = True
    if first:
        print("saving a checkpoint" + ("; Ctrl-C again to stop now" if _state.interrupted else ""), flush=True)
        _after(GRACE_S, _too_late)
        _after(LAST_S, lambda: os._exit(exit_code()))
    if _state.waiting == 0 or _state.late:
        raise Stopped


def _after(seconds: float, then: Any) -> None:
    timer = threading.Timer(seconds, then)
    timer.daemon = True
    timer.start()


def _too_late() -> None:
    _state.late = True
    os.kill(os.getpid(), signal.SIGTERM)  # the handler runs in the main thread and now raises
