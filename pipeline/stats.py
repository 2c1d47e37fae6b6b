"""Statistics of a report: pass@k, bootstrap intervals over prompts, rank correlation. Pure; NumPy only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.seeds import rng


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of the n samples, drawn without replacement, hold a correct one. Raises ValueError if k > n.

    Source: arXiv:2107.03374 §2.1, the unbiased estimator.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a prompt, and there are {n}")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def bootstrap_ci95(values: Sequence[float], *, key: int | str = "ci", resamples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of the mean; `values` are one per prompt, for samples of a prompt are not independent."""
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return math.nan, math.nan
    means = data[rng("bootstrap", key).integers(0, len(data), (resamples, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1; ties share their mean rank."""
    data = np.asarray(values, dtype=float)
    out = np.empty(len(data))
    out[np.argsort(data, kind="stable")] = np.arange(1, len(data) + 1)
    for value in np.unique(data):
        out[data == value] = out[data == value].mean()
    return out


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; NaN where one side does not vary or fewer than two points are given."""
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def describe_groups(groups: Sequence[Sequence[Any]], *, k: int) -> dict[str, Any]:
    """A policy's figures from scored samples, grouped by prompt (`pipeline.records.Scored`).

    A sample is right when its status is `pass`; rows the checker broke on count nowhere. pass@k over prompts with at
    least k usable samples. distinct_answers: distinct completions a prompt. entropy: nats a token, the mean of
    -log-prob of what was sampled.
    """
    usable = [[s for s in group if s.scorable] for group in groups]
    usable = [group for group in usable if group]
    right = [[s.status == "pass" for s in group] for group in usable]
    accuracy = [mean(r) for r in right]
    every = [s for group in usable for s in group]
    tokens = [len(s.rollout.ids) for s in every]
    at_k = [pass_at_k(len(r), sum(r), k) for r in right if len(r) >= k]
    return {
        "heldout_accuracy": mean(accuracy),
        "heldout_accuracy_ci95": list(bootstrap_ci95(accuracy)),
        "heldout_reward": mean([mean([s.reward for s in g]) for g in usable]),
        "heldout_prompts": len(usable),
        "heldout_samples": len(every),
        f"pass_at_{k}": mean(at_k),
        "mean_completion_tokens": mean(tokens),
        "distinct_answers": mean([len(Counter(s.rollout.text for s in g)) for g in usable]),
        "entropy": -mean([lp for s in every for lp in s.rollout.logprobs]),
        "malformed_share": mean([s.status == "malformed" for s in every]),
        "truncated_share": mean([not s.rollout.finished for s in every]),
        "checker_broken": sum(len(g) for g in groups) - len(every),
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """mean of a - b over the pairs, its 95% interval, and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, key: int | str = "paired", resamples: int = 4000
) -> Difference:
    """How much a is above b, pair by pair, by the percentile bootstrap over pairs.

    a, b: one value a pair (a prompt, or a prompt under one seed), in the same order. Pairing takes out what makes a
    prompt hard for both. p: twice the smaller tail of the resampled means beyond 0, at least 1/resamples.
    Raises ValueError where the sides are of different length. NaN of nothing.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap, ch. 13.
    """
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float) if len(a) == len(b) else None
    if gaps is None:
        raise ValueError(f"paired values must come in pairs, and there are {len(a)} and {len(b)}")
    if len(gaps) == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan)
    drawn = gaps[rng("bootstrap", key).integers(0, len(gaps), (resamples, len(gaps)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return Difference(float(gaps.mean()), float(low), float(high), float(min(1.0, max(2 * tail, 1 / resamples))))
