"""Statistics of a report: pass@k, bootstrap intervals over prompts, rank correlation. Pure; NumPy only."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from pipeline.seeds import rng


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of the n samples, drawn without replacement, hold a correct one. Raises ValueError if k > n.

    Source: arXiv:2107.03374 §2.1, the unbiased estimator.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples per prompt, and there are {n}")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def bootstrap_ci95(values: Sequence[float], *, key: int | str = "ci", resamples: int = 2000) -> tuple[float, float]:
    """95% percentile interval of the mean; one value per prompt: samples of a prompt are dependent."""
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
    """Rank correlation; NaN where one side does not vary, a value is NaN or fewer than two points are given."""
    if len(set(x)) < 2 or len(set(y)) < 2 or any(math.isnan(value) for value in (*x, *y)):
        return math.nan
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def mean(values: Sequence[float]) -> float:
    """NaN for empty input."""
    return math.fsum(values) / len(values) if values else math.nan


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a figure read from a log is a number; a flag is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def counts(reward: float | None, status: str) -> bool:
    """Whether a sample counts in a figure of accuracy: every checker worked on it.

    A broken checker leaves no reward, or status `error` where only a checker of weight 0 broke: nobody knows whether
    such an answer is right, so it counts neither as right nor as wrong.
    """
    return reward is not None and not math.isnan(reward) and status != "error"


def counted(samples: Iterable[Any]) -> list[Any]:
    """The samples (`pipeline.records.Scored`) that count in a figure of accuracy."""
    return [s for s in samples if counts(s.reward, s.status)]


def pass_rate(samples: Iterable[Any]) -> float:
    """Accuracy, the one definition: the share of passes among samples whose checkers all worked; NaN without any."""
    return mean([float(s.status == "pass") for s in counted(samples)])


@dataclass(frozen=True, slots=True)
class Tally:
    """Summary of a batch of scores, the three outcomes apart."""

    reward_mean: float
    reward_std: float
    passed: float
    malformed: float
    broken: float


def tally(scored: Sequence[Any]) -> Tally:
    """Reward over the scorable rows, passes by the one definition of accuracy (`stats.pass_rate`), other shares over
    all rows. scored: `pipeline.records.Scored`."""
    n = max(len(scored), 1)
    values = [s.reward for s in scored if s.scorable]
    average = mean(values)
    variance = mean([(v - average) ** 2 for v in values])
    malformed, broken = sum(s.status == "malformed" for s in scored) / n, sum(not s.scorable for s in scored) / n
    return Tally(average, math.sqrt(variance), pass_rate(scored), malformed, broken)


def best_answer_mass(group: Sequence[Any]) -> float:
    """Concentration on the optimum: the share of a prompt's samples that are its most frequent best answer.

    Best: right, and of the highest reward among the right ones; 0 where none is right.
    """
    right = [s for s in group if s.status == "pass"]
    if not right:
        return 0.0
    top = max(s.reward for s in right)
    return max(Counter(s.rollout.ids for s in right if s.reward == top).values()) / len(group)


def describe_groups(groups: Sequence[Sequence[Any]], *, k: int) -> dict[str, Any]:
    """A policy's figures from scored samples, grouped by prompt (`pipeline.records.Scored`).

    A sample is right when its status is `pass`; samples on which a checker broke count nowhere. pass@k is over prompts
    with at least k samples that count. distinct_answers: distinct completions per prompt. entropy: nats per token, the
    mean of -log-prob of what was sampled.
    """
    usable = [kept for group in groups if (kept := counted(group))]
    right = [[s.status == "pass" for s in group] for group in usable]
    accuracy = [pass_rate(group) for group in usable]
    every = [s for group in usable for s in group]
    tokens = [sum(s.rollout.mask) for s in every]
    at_k = [pass_at_k(len(r), sum(r), k) for r in right if len(r) >= k]
    return {
        "heldout_accuracy": mean(accuracy),
        "heldout_accuracy_ci95": list(bootstrap_ci95(accuracy)),
        "heldout_reward": mean([mean([s.reward for s in g]) for g in usable]),
        "heldout_prompts": len(usable),
        "heldout_samples": len(every),
        f"pass_at_{k}": mean(at_k),
        "mean_completion_tokens": mean(tokens),
        "distinct_answers": mean([len(Counter(s.rollout.answer for s in g)) for g in usable]),
        "entropy": -mean([lp for s in every for lp, on in zip(s.rollout.logprobs, s.rollout.mask, strict=True) if on]),
        "best_answer_mass": mean([best_answer_mass(g) for g in usable]),
        "malformed_share": mean([s.status == "malformed" for s in every]),
        "truncated_share": mean([not s.rollout.finished for s in every]),
        "checker_broken": sum(len(g) for g in groups) - len(every),
    }


def episode_figures(scored: Sequence[Any]) -> dict[str, float]:
    """Figures of episodes with tools, from scored samples; {} if these are none. Shares are over episodes,
    tool_error_share over calls."""
    records = [s.rollout.episode for s in scored if s.rollout.episode is not None]
    n = len(records)
    if not n:
        return {}
    calls = sum(r["calls"] for r in records)
    hows = sorted({r["ended_by"] for r in records})
    rewritten = sum(s.rollout.turn > 0 for s in scored if s.rollout.episode is not None)
    return {
        "tool_calls_mean": calls / n,
        "tool_error_share": sum(r["tool_errors"] for r in records) / max(calls, 1),
        "malformed_calls_mean": sum(r["malformed_calls"] for r in records) / n,
        "turns_mean": sum(r["turns"] for r in records) / n,
        "rewritten_history": rewritten / n,
        **{f"ended_by/{how}": sum(r["ended_by"] == how for r in records) / n for how in hows},
    }


def is_judged(figures: Mapping[str, Any]) -> bool:
    """False where no part of the rewards says right or wrong: accuracy and pass@k then count every scored answer."""
    return figures.get("heldout_judged") is not False


def headline_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The main figures that any of the rows holds, in the order of a table; pass@k whatever its k. Where nothing judges
    right and wrong the mean reward takes the place of both."""
    present = [name for row in rows for name in row]
    at_k = sorted({name for name in present if re.fullmatch(r"pass_at_\d+", name)}, key=lambda name: int(name[8:]))
    judged = ["heldout_accuracy", *at_k] if all(map(is_judged, rows)) else ["heldout_reward"]
    names = [*judged, "mean_completion_tokens", "distinct_answers", "entropy"]
    return [name for name in names if name in present]


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

    a, b: one value per pair (a prompt, or a prompt under one seed), in the same order. Pairing removes what makes a
    prompt hard for both. p: twice the smaller tail of the resampled means beyond 0, at least 1/resamples.
    Raises ValueError where the sides are of different length. NaN for empty input.
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


def crossed_difference(
    a_SP: Sequence[Sequence[float]],
    b_SP: Sequence[Sequence[float]],
    *,
    key: int | str = "crossed",
    resamples: int = 4000,
) -> Difference:
    """How much a is above b over S seeds and P prompts: a paired bootstrap over prompts, widened by the seeds' spread.

    a_SP, b_SP: one value per seed and prompt, both under the same seeds and prompts. Resampling prompts alone would be
    about these trained models only; training again gives others. The difference's mean of each seed is taken as normal
    around the true one with unknown variance, so a Student t of S-1 degrees of freedom, scaled by the standard error of
    the S means, is added to each resample. With one seed nothing is known of others, and only prompts are resampled.
    p is never below 1/resamples, so that many comparisons need more of them. NaN for empty input. Raises ValueError
    where the two sides do not match.
    """
    if [len(row) for row in a_SP] != [len(row) for row in b_SP]:
        raise ValueError("paired values must come in pairs: other seeds or prompts on one side")
    gaps_SP = np.asarray(a_SP, dtype=float) - np.asarray(b_SP, dtype=float)
    if gaps_SP.size == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan)
    seeds, prompts = gaps_SP.shape
    draw = rng("bootstrap", key)
    blocks = [min(4000, resamples - begin) for begin in range(0, resamples, 4000)]  # not all indices in memory at once
    drawn = np.concatenate([gaps_SP.mean(axis=0)[draw.integers(0, prompts, (n, prompts))].mean(axis=1) for n in blocks])
    if seeds > 1:
        drawn = drawn + draw.standard_t(seeds - 1, resamples) * gaps_SP.mean(axis=1).std(ddof=1) / math.sqrt(seeds)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return Difference(float(gaps_SP.mean()), float(low), float(high), float(min(1.0, max(2 * tail, 1 / resamples))))


def mean_over_runs(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent runs and its 95% interval by Student's t: (mean, low, high).

    values: one figure per run, such as its accuracy. One run says nothing about others: its interval is NaN.
    """
    if len(values) < 2:
        return mean(values), math.nan, math.nan
    half = t_quantile_975(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    middle = mean(values)
    return middle, middle - half, middle + half


def t_quantile_975(freedom: int) -> float:
    """97.5% quantile of Student's t, to 3 digits: a table, then its expansion in 1/freedom.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.5 and table 26.10.
    """
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    if freedom <= len(table):
        return table[freedom - 1]
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being many: below 0.05 after this, at most one claim in twenty reports is wrong.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = worst
    return out


def best_of(chosen_by: Sequence[float], worth: Sequence[float], n: int) -> float:
    """Expected worth of the sample a judge likes best among n of these, drawn without replacement.

    chosen_by: the judge's score of each sample; worth: what it is worth; ties go to the mean of the tied. Unbiased for
    best-of-n with fresh samples. Raises ValueError if n is beyond the samples.
    Source: the estimator of arXiv:2210.10760 (Gao et al.), appendix I; arXiv:2112.09332 §5.
    """
    total = len(chosen_by)
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} needs at least {n} samples per prompt, and there are {total}")
    order = sorted(range(total), key=lambda i: chosen_by[i])
    value: dict[float, list[float]] = {}
    for i in order:  # tied samples share one value
        value.setdefault(chosen_by[i], []).append(worth[i])
    chance = [math.comb(rank, n - 1) / math.comb(total, n) for rank in range(total)]
    return math.fsum(chance[rank] * mean(value[chosen_by[i]]) for rank, i in enumerate(order))


def best_of_kl(n: int) -> float:
    """KL of best-of-n from the policy that samples, in nats, an upper bound where answers repeat.

    Source: Stiennon et al., arXiv:2009.01325, appendix G.3; Beirami et al., arXiv:2401.01879 on the bound.
    """
    return math.log(n) - (n - 1) / n
