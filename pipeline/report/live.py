"""The report of a running run: written repeatedly while it trains; the page reloads itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report import write_report

EVERY_S = 30.0  # between two writes, at least
SHARE = 0.02  # of the run's time that writing may take


@dataclass(slots=True)
class LiveReport:
    """Called with each line of metrics; writes RUN/report.html now and then."""

    run_dir: Path
    clock: Callable[[], float] = time.monotonic
    next_at: float = 0.0

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        if self.clock() >= self.next_at:
            self.write()

    def write(self) -> None:
        """Write it now. A report that cannot be written stops no run: the command `report` says why."""
        began = self.clock()
        try:
            write_report(self.run_dir, live=True)
        except Exception as exc:  # whatever is wrong with a page, hours of training do not end for it
            print(f"report: {type(exc).__name__}: {' '.join(str(exc).split())}; the run continues", flush=True)
        took = self.clock() - began
        self.next_at = self.clock() + max(EVERY_S, took / SHARE)


__all__ = ["LiveReport"]
