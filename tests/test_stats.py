"""Statistics against outside oracles: scipy, plain enumeration, and worlds whose truth we set."""

from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from pipeline.stats import (
    best_answer_mass,
    best_of,
    best_of_kl,
    bootstrap_ci95,
    crossed_difference,
    headline_names,
    holm,
    mean_over_runs,
    paired_difference,
    pass_at_k,
    spearman,
    t_quantile_975,
)


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 2, 1), (6, 3, 2), (7, 0, 3), (7, 7, 3), (8, 1, 8), (6, 5, 4)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_correct_one(n: int, correct: int, k: int) -> None:
    draws = list(combinations(range(n), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(min(d) < correct for d in draws) / len(draws))


def test_pass_at_k_follows_the_formula_of_its_paper() -> None:
    n, k = 200, 100
    for correct in (0, 1, 3, 50, 199, 200):
        # arXiv:2107.03374, figure 3
        paper = 1.0 if n - correct < k else 1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1))
        assert pass_at_k(n, correct, k) == pytest.approx(paper)


def test_pass_at_k_of_more_than_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 5"):
        pass_at_k(4, 2, 5)


def scipy_interval(values: np.ndarray) -> tuple[float, float]:
    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    )
    return found.confidence_interval.low, found.confidence_interval.high


@pytest.mark.parametrize("shape", ["shares", "skewed"])
def test_bootstrap_interval_agrees_with_scipy(shape: str) -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 17, 120) / 16 if shape == "shares" else rng.exponential(1.0, 120)
    low, high = scipy_interval(values)
    ours = bootstrap_ci95(values.tolist(), resamples=20_000)
    # two independent sets of resamples: their quantiles differ by Monte Carlo error only
    assert ours == pytest.approx((low, high), abs=0.05 * (high - low))


def test_paired_interval_is_scipys_of_the_differences_and_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(4)
    hard = rng.normal(0.5, 0.3, 150)  # what makes a prompt hard for both
    a, b = hard + rng.normal(0.05, 0.05, 150), hard + rng.normal(0.0, 0.05, 150)
    low, high = scipy_interval(a - b)
    found = paired_difference(a.tolist(), b.tolist(), resamples=20_000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert found.mean == pytest.approx((a - b).mean())
    unpaired = math.hypot(*(np.diff(scipy_interval(x))[0] for x in (a, b)))
    assert found.high - found.low < 0.5 * unpaired


def test_paired_values_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_swapping_the_sides_turns_the_sign() -> None:
    a, b = [0.9, 0.4, 0.7, 0.2], [0.3, 0.4, 0.1, 0.0]
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert back.p == there.p


def simulated(rng: np.random.Generator, *, seeds: int, prompts: int, gap: float, spread: float) -> tuple[list, list]:
    """Two methods, 16 samples a prompt: prompts of different difficulty, and a training run's own luck of `spread`."""
    difficulty = rng.normal(0.0, 1.0, prompts)
    sides = []
    for shift in (gap, 0.0):
        luck = rng.normal(0.0, spread, (seeds, 1)) + rng.normal(0.0, 2 * spread, (seeds, prompts))
        chance = 1 / (1 + np.exp(-(difficulty + shift + luck)))
        sides.append((rng.binomial(16, chance) / 16).tolist())
    return sides[0], sides[1]


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.5])
def test_a_method_under_two_names_is_distinguished_in_at_most_5_of_100_comparisons(spread: float) -> None:
    rng = np.random.default_rng(11)
    apart = 0
    for number in range(200):
        a, b = simulated(rng, seeds=3, prompts=126, gap=0.0, spread=spread)
        apart += crossed_difference(a, b, key=number, resamples=2000).p < 0.05
    assert apart <= 10


def test_many_names_for_one_method_are_distinguished_in_at_most_5_of_100_tables() -> None:
    rng = np.random.default_rng(12)
    tables_with_a_claim = 0
    for number in range(200):
        sides = [simulated(rng, seeds=3, prompts=60, gap=0.0, spread=0.3)[0] for _ in range(4)]
        p = [crossed_difference(a, b, key=number, resamples=1000).p for a, b in combinations(sides, 2)]
        tables_with_a_claim += min(holm(p)) < 0.05
    assert tables_with_a_claim <= 10


def test_a_clearly_better_method_is_distinguished() -> None:
    rng = np.random.default_rng(13)
    found = [
        crossed_difference(*simulated(rng, seeds=3, prompts=126, gap=1.5, spread=0.1), key=i, resamples=1000)
        for i in range(40)
    ]
    assert sum(d.low > 0 for d in found) >= 36


def test_prompts_alone_would_call_the_luck_of_a_run_a_difference() -> None:
    """Why the seeds' spread is in the interval: without it, training luck alone tells a method from itself."""
    rng = np.random.default_rng(14)
    fooled = 0
    for number in range(100):
        a, b = simulated(rng, seeds=1, prompts=126, gap=0.0, spread=0.5)
        fooled += paired_difference(a[0], b[0], key=number, resamples=1000).p < 0.05
    assert fooled > 20


def test_one_seed_resamples_prompts_only() -> None:
    a, b = [0.2, 0.9, 0.4, 0.6], [0.1, 0.5, 0.4, 0.2]
    alone, plain = crossed_difference([a], [b], key="x"), paired_difference(a, b, key="x")
    assert (alone.mean, alone.low, alone.high) == (plain.mean, plain.low, plain.high)


def test_holm_follows_a_worked_example() -> None:
    # p of 0.01, 0.04, 0.03, 0.005: times 3, 1, 2, 4, and never below what stands before them in order
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_best_of_n_is_the_mean_over_all_draws_of_n(n: int) -> None:
    judge, worth = [0.3, -1.0, 2.0, 0.1, 5.0, -2.0], [1.0, 0.0, 0.5, 0.25, 0.0, 1.0]
    draws = list(combinations(range(6), n))
    expected = sum(worth[max(d, key=lambda i: judge[i])] for d in draws) / len(draws)
    assert best_of(judge, worth, n) == pytest.approx(expected)


def test_best_of_n_by_the_true_reward_of_right_and_wrong_is_pass_at_n() -> None:
    right = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    for n in (1, 3, 6):
        assert best_of(right, right, n) == pytest.approx(pass_at_k(8, 3, n))


def test_a_judge_that_knows_nothing_gains_nothing_however_many_it_sees() -> None:
    worth = [1.0, 0.0, 0.5, 0.0]
    assert best_of([7.0] * 4, worth, 3) == pytest.approx(sum(worth) / 4)


def test_kl_of_best_of_n_is_that_of_the_maximum_of_n_uniforms() -> None:
    # density n u^(n-1) against 1: KL is the integral of n u^(n-1) log(n u^(n-1))
    for n in (1, 2, 8, 64):
        u = (np.arange(400_000) + 0.5) / 400_000
        density = n * u ** (n - 1)
        assert best_of_kl(n) == pytest.approx((density * (np.log(n) + (n - 1) * np.log(u))).mean(), abs=1e-3)


def test_spearman_agrees_with_scipy_with_ties() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        x, y = rng.integers(0, 4, 12).tolist(), rng.integers(0, 4, 12).tolist()
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_no_rank_correlation_is_reported_of_what_is_not_known() -> None:
    lost = float("nan")
    assert all(math.isnan(spearman([0, 1, 2], values)) for values in ([lost] * 3, [0.0, lost, 1.0], [1.0] * 3, []))


def test_the_headline_shows_pass_at_k_under_the_k_of_the_evaluation() -> None:
    rows = [{"heldout_accuracy": 0.5, "pass_at_8": 0.9, "entropy": 1.0}, {"pass_at_16": 1.0, "other": 3}]
    assert headline_names(rows) == ["heldout_accuracy", "pass_at_8", "pass_at_16", "entropy"]


def sample(ids: tuple[int, ...], reward: float, status: str = "pass") -> SimpleNamespace:
    return SimpleNamespace(rollout=SimpleNamespace(ids=ids), reward=reward, status=status)


def test_mass_on_the_best_answer_counts_its_copies_among_all_samples() -> None:
    group = [sample((1,), 1.0), sample((1,), 1.0), sample((2,), 1.0), sample((3,), 0.5), sample((4,), 0.0, "fail")]
    assert best_answer_mass(group) == pytest.approx(2 / 5)
    assert best_answer_mass([sample((4,), 0.0, "fail")] * 3) == 0.0


def test_the_interval_over_runs_is_scipys_and_one_run_has_none() -> None:
    values = [0.41, 0.64, 0.62, 0.7]
    middle, low, high = mean_over_runs(values)
    expected = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=1e-3) and middle == pytest.approx(np.mean(values))
    assert math.isnan(mean_over_runs([0.5])[1])
    for freedom in (*range(1, 40), 100, 1000):
        assert t_quantile_975(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=1e-3)
