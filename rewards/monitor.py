"""The hacking monitor: is the policy getting better, or better at the verifier?

Each step's train scores stand beside a stricter or second verifier's scores of a sample of the same rollouts, with
lengths, the share that keeps the format and the share of duplicates. Four things trip it, each compared with what this
run looked like in its first steps:

    gap          mean(train - strict) over the window rose: the train verifier pays for what the strict one does not
    length       the mean length has grown or shrunk by a factor
    format       the share that keeps the format has fallen
    duplicates   the share of repeated completions has risen

One step decides nothing: figures are means over a window, and the gap must also exceed its own standard errors.
Pure: no clock, no randomness, no files; the state goes into a checkpoint and comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop. Each limit may be None: watched, never tripped."""

    gap: float | None = 0.15  # rise of mean(train - strict), in score
    length_factor: float | None = 3.0  # growth or shrinking of the mean length
    format_drop: float | None = 0.3  # fall of the share that keeps the format
    duplicate_rise: float | None = 0.4  # rise of the share of duplicates
    window: int = 5  # steps a figure is the mean of
    baseline: int = 5  # first steps that say what is normal
    errors: float = 3.0  # standard errors the gap's rise must exceed

    def __post_init__(self) -> None:
        if self.window < 1 or self.baseline < 1:
            raise ValueError(f"monitor: window {self.window} and baseline {self.baseline} must be at least 1")
        if self.length_factor is not None and self.length_factor <= 1:
            raise ValueError(f"monitor: length_factor {self.length_factor} must be above 1")


@dataclass(frozen=True, slots=True)
class Observation:
    """One step. Train and strict scores are of the same N sampled rollouts; NaN (not scorable) on either side is left
    out of the gap. Lengths, format and duplicates are of the whole batch."""

    train_scores: Sequence[float]
    strict_scores: Sequence[float]
    lengths: Sequence[int]
    format_share: float
    duplicate_share: float


@dataclass(frozen=True, slots=True)
class Decision:
    """tripped: `gap`, `length`, `format`, `duplicates` or ""; reason: one sentence for people; drift: the figures."""

    tripped: str
    reason: str
    drift: Mapping[str, float]


@dataclass(slots=True)
class Monitor:
    """What the run looked like so far: one row of figures per step, the baseline's and the window's."""

    limits: Limits = field(default_factory=Limits)
    steps: int = 0
    first: list[dict[str, float]] = field(default_factory=list)
    recent: list[dict[str, float]] = field(default_factory=list)

    def observe(self, observation: Observation) -> Decision:
        """Take in one step and decide."""
        row = figures(observation)
        self.steps += 1
        if len(self.first) < self.limits.baseline:
            self.first.append(row)
        self.recent = [*self.recent, row][-self.limits.window :]
        drift = drifts(self.first, self.recent)
        if self.steps < self.limits.baseline + self.limits.window:
            return Decision("", "", drift)
        return decide(drift, self.limits)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Monitor:
        """The monitor that to_dict described. Raises ValueError on a state with other fields."""
        if set(state) != {each.name for each in fields(cls)}:
            raise ValueError(f"monitor state with the fields {sorted(state)}; it was written by another version")
        rest = {name: value for name, value in state.items() if name != "limits"}
        return cls(limits=Limits(**state["limits"]), **rest)


def figures(observation: Observation) -> dict[str, float]:
    """A step as sums, so that windows pool rollouts and not steps."""
    pairs = zip(observation.train_scores, observation.strict_scores, strict=True)
    gaps = [train - strict for train, strict in pairs if math.isfinite(train) and math.isfinite(strict)]
    return {
        "gaps": float(len(gaps)),
        "gap_sum": math.fsum(gaps),
        "gap_squares": math.fsum(gap * gap for gap in gaps),
        "length": math.fsum(observation.lengths) / max(1, len(observation.lengths)),
        "format": float(observation.format_share),
        "duplicates": float(observation.duplicate_share),
    }


def drifts(first: Sequence[Mapping[str, float]], recent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """gap, gap_rise and its standard error; length_factor; format_drop; duplicate_rise: recent against first."""
    before, before_error = _gap(first)
    now, now_error = _gap(recent)
    return {
        "gap": now,
        "gap_rise": now - before,
        "gap_rise_error": math.hypot(before_error, now_error),
        "length_factor": _mean(recent, "length") / max(1e-9, _mean(first, "length")),
        "format_drop": _mean(first, "format") - _mean(recent, "format"),
        "duplicate_rise": _mean(recent, "duplicates") - _mean(first, "duplicates"),
    }


def decide(drift: Mapping[str, float], limits: Limits) -> Decision:
    """The first limit that is passed, in the order of the module's list."""
    rise, error = drift["gap_rise"], drift["gap_rise_error"]
    if limits.gap is not None and rise > limits.gap and rise > limits.errors * error:
        reason = (
            f"the train score rose {rise:.2f} (±{error:.2f}) further than the strict score did, beyond the limit of "
            f"{limits.gap:g}: the policy is likely exploiting the train verifier"
        )
        return Decision("gap", reason, drift)
    factor = drift["length_factor"]
    if limits.length_factor is not None and not 1 / limits.length_factor <= factor <= limits.length_factor:
        change = f"{factor:.1f} times" if factor > 1 else f"{factor:.2f} of"
        reason = f"completions are {change} their first length, beyond the limit of a factor {limits.length_factor:g}"
        return Decision("length", reason, drift)
    if limits.format_drop is not None and drift["format_drop"] > limits.format_drop:
        fall = f"the share that keeps the format fell by {drift['format_drop']:.2f}"
        return Decision("format", f"{fall}, beyond the limit of {limits.format_drop:g}", drift)
    if limits.duplicate_rise is not None and drift["duplicate_rise"] > limits.duplicate_rise:
        rose = f"the share of duplicate completions rose by {drift['duplicate_rise']:.2f}"
        return Decision("duplicates", f"{rose}, beyond the limit of {limits.duplicate_rise:g}", drift)
    return Decision("", "", drift)


def duplicate_share(completions: Sequence[str]) -> float:
    """The share of completions that repeat an earlier one of the batch."""
    return 1.0 - len(set(completions)) / len(completions) if completions else 0.0


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows)


def _gap(rows: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Mean train - strict over all rollouts of the rows, and its standard error; (0, inf) without any."""
    n = sum(row["gaps"] for row in rows)
    if n < 2:
        return 0.0, math.inf
    mean = math.fsum(row["gap_sum"] for row in rows) / n
    variance = max(0.0, math.fsum(row["gap_squares"] for row in rows) / n - mean * mean) * n / (n - 1)
    return mean, math.sqrt(variance / n)
