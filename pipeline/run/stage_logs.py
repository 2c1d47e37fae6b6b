"""The append-only logs of a stage, written so that a killed and resumed run ends in the same bytes.

A resumed stage goes through the same steps again. What was saved is read instead of computed, which moves the position
of the next row to its mark; rows of an earlier attempt beyond that position are kept where the same bytes follow, and
truncated where they do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.run.files import drop_torn_line, dump_json, fsync, read_jsonl

APPENDED = ("metrics.jsonl", "rollouts.jsonl", "difficulty.jsonl")


@dataclass(slots=True)
class StageLogs:
    """metrics.jsonl, rollouts.jsonl, difficulty.jsonl and timing.jsonl of one stage, by one writer."""

    path: Path
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})  # sampled so far
    listeners: list[Callable[[Mapping[str, Any]], None]] = field(
        default_factory=list
    )  # called with each new line of metrics
    positions: dict[str, int] = field(default_factory=dict)  # file -> byte at which its next row goes
    reported: int = 0  # bytes of metrics.jsonl that an earlier attempt passed to the listeners
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0  # spent by earlier attempts that were killed

    def open(self) -> None:
        """Add the time that earlier attempts took."""
        timing = self.path / "timing.jsonl"
        if timing.is_file():
            drop_torn_line(timing)
            self.seconds_before = max((row.get("elapsed_s", 0.0) for row in read_jsonl(timing)), default=0.0)

    def elapsed_s(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.append("metrics.jsonl", [metrics])
        if self.positions.get("metrics.jsonl", 0) <= self.reported:
            return  # a replayed row: trackers have it
        for listener in self.listeners:
            listener(metrics)

    def log_timing(self, timing: Mapping[str, Any]) -> None:
        with (self.path / "timing.jsonl").open("a", encoding="utf-8") as out:
            out.write(dump_json({**timing, "elapsed_s": round(self.elapsed_s(), 3)}) + "\n")

    def append(self, name: str, rows: list[Any]) -> None:
        """Rows at the position of the file; what is there already is kept if it is the same."""
        data = "".join(dump_json(row) + "\n" for row in rows).encode()
        path, position = self.path / name, self.positions.get(name, 0)
        path.touch()
        with path.open("r+b") as out:
            out.seek(position)
            before = out.read(len(data))
            if before != data:
                out.seek(position)
                out.truncate()
                out.write(data)
        if name == "metrics.jsonl" and not data.startswith(before):
            self.reported = min(self.reported, position)
        self.positions[name] = position + len(data)

    def truncate(self) -> None:
        """Truncate rows beyond the positions: they belong to a step that will be repeated."""
        for name in APPENDED:
            path, position = self.path / name, self.positions.get(name, 0)
            if path.is_file() and path.stat().st_size > position:
                os.truncate(path, position)

    def size(self, name: str) -> int:
        path = self.path / name
        return path.stat().st_size if path.is_file() else 0

    def mark(self) -> dict[str, Any]:
        """What is saved with every checkpoint: log lengths and token counts."""
        return {"lengths": dict(self.positions), "tokens": dict(self.tokens)}

    def go_to(self, mark: Mapping[str, Any]) -> None:
        self.positions, self.tokens = dict(mark["lengths"]), dict(mark["tokens"])

    def holds(self, mark: Mapping[str, Any]) -> bool:
        """Whether the files are as long as they were at the mark."""
        return all(self.size(name) >= length for name, length in mark["lengths"].items())

    def fsync(self) -> None:
        for name in self.positions:
            fsync(self.path / name)


class Stopwatch:
    """Seconds by phase of one step, for timing.jsonl."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def rates(self, tokens: int) -> dict[str, float]:
        """Seconds of each phase, and sampled tokens per second of each and of the whole step; a phase of less than a
        millisecond, as a wait that was none, has no rate."""
        total = max(sum(self.seconds.values()), 1e-9)
        speeds = {f"{name}_tokens_per_s": round(tokens / s, 1) for name, s in self.seconds.items() if s >= 1e-3}
        return {**{n: round(s, 4) for n, s in self.seconds.items()}, **speeds, "tokens_per_s": round(tokens / total, 1)}
