"""Where a worker waits between steps and reports the cost of the previous one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from pipeline.distributed import process


class GateStopped(BaseException):
    """Raised when the measuring process requests no further step."""


class Gate:
    """Used inside a worker. `step` is called at the start of every step; notes are figures of the current step.

    judge: if set, it is called after every `every` steps, outside the timed part.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers = os.fdopen(requests), os.fdopen(answers, "w")
        self.started: tuple[float, float] | None = None
        self.notes: dict[str, float] = {}
        self.judge: Callable[[], float] | None = None
        self.every, self.taken = 0, 0

    def note(self, name: str, value: float) -> None:
        self.notes[name] = self.notes.get(name, 0.0) + value

    def step(self) -> None:
        if self.started is not None:
            wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
            self.taken += 1
            if self.judge is not None and self.taken % self.every == 0:
                self.notes["accuracy"] = self.judge()
            self._say({"wall": wall, "cpu": cpu, "peak_mib": _peak_mib(), **self.notes})
        else:
            self._say({"peak_mib": _peak_mib()})
        if self.requests.readline().strip() != "step":
            raise GateStopped
        self.notes = {}
        self.started = time.perf_counter(), time.process_time()

    def _say(self, figures: dict[str, float]) -> None:
        self.answers.write(json.dumps(figures) + "\n")
        self.answers.flush()


def _peak_mib() -> float:
    return process.peak_rss() / 2**20
