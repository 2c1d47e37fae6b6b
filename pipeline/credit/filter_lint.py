"""Lint of a filter chain: what imitating its output can reach, reported before anything is trained on it.

A filter that keeps a mediocre success as readily as the best one is a bucket: imitating it gives the bucket's mean, and
no number of rounds makes a success better than a typical one. The lint compares the rewards that a chain keeps with all
rewards of the levels from which it keeps any: if the two means are close, the chain did not choose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.credit.selection import Candidate, Filter, FilterRound, Kept, select

FLAT = 0.15  # of the way from the bucket's mean to its best level: a chain that lifts less does not improve


@dataclass(frozen=True, slots=True)
class FilterWarning:
    """keep_rates: reward level -> share kept, rising by level. plateau: mean reward of what is kept.

    lift: how far the kept mean lies on the way from the mean of the levels kept at all (0) to the best of them (1);
    1 where only one level is kept.
    """

    keep_rates: dict[float, float]
    plateau: float
    best: float
    lift: float

    @property
    def is_bucket(self) -> bool:
        return self.lift < FLAT

    @property
    def message(self) -> str | None:
        if not self.is_bucket:
            return None
        worst = min(level for level, rate in self.keep_rates.items() if rate)
        return (f"the filter is a bucket: rewards from {worst:g} to {self.best:g} are kept alike "
                f"({self.keep_rates[worst]:.0%} and {self.keep_rates[self.best]:.0%}), so what is imitated averages "
                f"{self.plateau:.2f} and stays there; raise the threshold to {self.best:g}, or add top_k, softmax or "
                "monotone")  # fmt: skip


def lint(filters: Sequence[Filter], candidates: Sequence[Candidate], turn: FilterRound | None = None) -> FilterWarning:
    """Run the chain on samples of these rewards, prompts and lengths whose tokens are all different.

    All different, because good answers repeat more often: dedup would seem to avoid the best.
    """
    distinct = [replace(c, key=(-1 - i, *([i] * (c.length - 1)))) for i, c in enumerate(candidates)]
    return judge(distinct, select(distinct, filters, turn))


def judge(candidates: Sequence[Candidate], kept: Kept) -> FilterWarning:
    """The finding about the filter that kept these."""
    rewards = [c.reward for c in candidates if c.scorable]
    if not kept:
        return FilterWarning({}, float("nan"), float("nan"), 1.0)
    levels = levels_of(rewards)
    sampled = Counter(_level(reward, levels) for reward in rewards)
    chosen = Counter(_level(candidates[i].reward, levels) for i in kept)
    held = [reward for reward in rewards if chosen[_level(reward, levels)]]
    mean_held = sum(held) / len(held)
    mean_kept = sum(candidates[i].reward for i in kept) / len(kept)
    room = max(held) - mean_held
    # 1e-9: rounding of equal rewards summed in another order
    lift = (mean_kept - mean_held) / room if room > 1e-9 else 1.0
    return FilterWarning(
        {level: chosen[level] / sampled[level] for level in sorted(sampled)}, mean_kept, max(chosen), lift
    )


def levels_of(rewards: Sequence[float], *, most: int = 10) -> list[float]:
    """The distinct rewards if they are few, else `most` quantiles of them: a learned reward has no two equal values."""
    distinct = sorted(set(rewards))
    if len(distinct) <= most:
        return distinct
    ordered = sorted(rewards)
    return sorted({ordered[len(ordered) * i // most] for i in range(most)})


def _level(reward: float, levels: Sequence[float]) -> float:
    return max((level for level in levels if level <= reward), default=levels[0])
