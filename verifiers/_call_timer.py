"""How long checked code took, without the time for which the machine was busy with something else."""

from __future__ import annotations

import time
from pathlib import Path


class CallTimer:
    """`with CallTimer() as timer:` then `timer.seconds`: wall time less what this thread waited for a CPU."""

    seconds = 0.0

    def __enter__(self) -> CallTimer:
        self._started, self._queued = time.monotonic(), queued_s()
        return self

    def __exit__(self, *raised: object) -> None:
        self.seconds = time.monotonic() - self._started - (queued_s() - self._queued)

    def fair(self, deadline_s: float) -> float:
        """The seconds; above deadline_s, divided by the slowdown of the machine as measured now."""
        return self.seconds / slowdown() if self.seconds > deadline_s else self.seconds


def queued_s() -> float:
    """Seconds this thread has waited for a CPU: a busy machine is no fault of the checked code."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # a kernel without it
        return 0.0


def slowdown() -> float:
    """Wall time over CPU time just now (1 or more), for what the checked code does in other processes."""
    started, spent = time.monotonic(), time.thread_time()
    while time.thread_time() - spent < 0.05:
        pass
    return max(1.0, (time.monotonic() - started) / 0.05)
