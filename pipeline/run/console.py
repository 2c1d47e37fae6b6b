"""Console output of a run: one line per step with the time left, a few samples with their scores, a summary table."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.distributed import ranks
from pipeline.records import Scored, merged_episodes


def say(text: str) -> None:
    """One line, printed by rank 0 only."""
    if ranks.is_main():
        # a completion may hold half a surrogate pair, which no terminal takes
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)


def clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    whole = max(int(seconds), 0)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def number(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.3g}" if abs(value) < 1e-2 and value else f"{value:.3f}"
    return str(value)


class Progress:
    """One line per step: `grpo 12/128  reward 0.412  kl 0.003  1:03 left`. On a terminal the line is rewritten.

    budget_share: share of a token budget that is spent, where one may end the work before `total` steps.
    """

    def __init__(self, name: str, total: int, *, done: int = 0, budget_share: float = 0.0) -> None:
        self.name, self.total = name, total
        self.first = max(done / max(total, 1), budget_share)
        self.started = self.printed = time.monotonic()

    def step(self, done: int, *, budget_share: float = 0.0, **figures: Any) -> None:
        now = time.monotonic()
        share = max(done / max(self.total, 1), budget_share)
        last = share >= 1
        live = sys.stdout.isatty()
        if not live and not last and now - self.printed < 5.0:
            return
        self.printed = now
        left = (now - self.started) / (share - self.first) * (1 - share) if share > self.first else math.nan
        shown = "  ".join(f"{k} {number(v)}" for k, v in figures.items())
        line = f"{self.name} {done}/{self.total}  {shown}  " + (
            f"took {clock(now - self.started)}" if last else f"{clock(left)} left"
        )
        print(("\r\x1b[K" if live else "") + line, end="" if live and not last else "\n", flush=True)


def visible(text: str, limit: int = 60) -> str:
    flat = text.replace("\n", "\\n")
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def show_samples(scored: Sequence[Scored], *, count: int = 3) -> None:
    """The best, the worst and a middle sample with their score breakdown: people catch reward hacking by reading."""
    usable = sorted((s for s in merged_episodes(scored) if s.scorable), key=lambda s: s.reward)
    if not usable:
        return
    indices = sorted({0, len(usable) // 2, len(usable) - 1}, reverse=True)[:count]
    for index in indices:
        s = usable[index]
        parts = " ".join(f"{k}={number(v)}" for k, v in s.parts.items())
        end = "" if s.rollout.finished else " [cut]"
        shown = f"{visible(s.rollout.prompt.text, 40)} → {visible(s.rollout.text)}{end}"
        say(f"  {shown}  reward {number(s.reward)} ({parts}) {s.detail}")


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    cells = [list(columns)] + [[number(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
