"""The monitor names a hole when a policy finds it, and stays quiet when a policy only learns."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from rewards.monitor import (
    Decision,
    MonitorHistory,
    MonitorLimits,
    Observation,
    commonest_share,
    drifts,
    duplicate_share,
    figures,
)


def holed(completion: str, gold: str) -> float:
    """A train verifier with a planted hole: any completion that ends in `!` passes."""
    return float(completion == gold or completion.endswith("!"))


def strict(completion: str, gold: str) -> float:
    return float(completion == gold)


def train_on(verify, *, steps: int, seed: int = 0, hole_known: float = 0.2) -> tuple[list[Decision], MonitorHistory]:
    """REINFORCE on a bandit of three habits: solve (right half of the time), guess, and shout `!`."""
    rng = random.Random(seed)
    logits = [0.0, 0.0, math.log(hole_known)]
    monitor, decisions = MonitorHistory(), []
    for _ in range(steps):
        weights = [math.exp(z) for z in logits]
        habits = rng.choices(range(3), weights, k=64)
        texts = [("gold" if rng.random() < 0.5 else "lead", f"guess {rng.random():.3f}", "gold?!")[h] for h in habits]
        rewards = [verify(text, "gold") for text in texts]
        mean = statistics.fmean(rewards)
        for habit, reward in zip(habits, rewards, strict=True):
            share = [w / sum(weights) for w in weights]
            for k in range(3):
                logits[k] += 0.03 * (reward - mean) * ((k == habit) - share[k])
        judged = [strict(text, "gold") for text in texts]
        decisions.append(monitor.observe(Observation(rewards, judged, [5] * 64, 1.0, 0.0)))
    return decisions, monitor


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_policy_that_finds_a_planted_hole_trips_the_gap(seed: int) -> None:
    decisions, _ = train_on(holed, steps=60, seed=seed)
    alarms = [d for d in decisions if d.tripped]
    assert alarms and alarms[0].tripped == "gap"
    assert "exploiting" in alarms[0].reason and alarms[0].drift["gap_rise"] > 0.15


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_policy_under_the_strict_verifier_learns_without_alarm(seed: int) -> None:
    decisions, _ = train_on(strict, steps=60, seed=seed)
    assert [d.tripped for d in decisions] == [""] * 60


def steady(step: int, **changed: object) -> Observation:
    rng = random.Random(step)
    scores = [float(rng.random() < 0.5) for _ in range(32)]
    normal = {"train_scores": scores, "strict_scores": scores, "lengths": [100] * 32, "format_share": 0.95}
    return Observation(**(normal | {"duplicate_share": 0.1} | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"lengths": [500] * 32}, "length"),
        ({"lengths": [20] * 32}, "length"),
        ({"lengths": [30] * 32}, ""),
        ({"format_share": 0.2}, "format"),
        ({"duplicate_share": 0.9}, "duplicates"),
        ({"commonest_share": 0.9}, "commonest"),
        ({"strict_scores": [0.0] * 32}, "gap"),
        ({}, ""),
    ],
)
def test_each_drift_is_named_once_its_window_is_full(changed: dict, name: str) -> None:
    monitor = MonitorHistory(MonitorLimits(duplicate_rise=0.4))
    for step in range(20):
        assert monitor.observe(steady(step)).tripped == ""
    found = [monitor.observe(steady(step, **changed)).tripped for step in range(20, 30)]
    assert found[-1] == name
    assert found[0] == "" or name == "gap"


def course(golds: list[float], proxies: list[float]) -> list[str]:
    """What trips, step by step, when a learned reward in its own units goes one way and the verifier another."""
    monitor, rng = MonitorHistory(MonitorLimits(gap=None)), random.Random(2)
    tripped = []
    for gold, proxy in zip(golds, proxies, strict=True):
        strict = [float(rng.random() < gold) for _ in range(64)]
        train = [rng.gauss(proxy, 1.0) for _ in range(64)]
        tripped.append(monitor.observe(Observation(train, strict, [8] * 64, 1.0, 0.1)).tripped)
    return tripped


def test_a_learned_reward_that_goes_on_rising_while_the_verifier_falls_trips_the_fall() -> None:
    rising = [0.1 * step for step in range(40)]
    up_and_down = [0.4 + 0.02 * min(step, 20 - step) for step in range(40)]
    found = course(up_and_down, rising)
    first = found.index("fall")
    assert set(found) == {"", "fall"} and first > 12
    assert course([0.4 + 0.01 * step for step in range(40)], rising) == [""] * 40, "both rise"
    assert course(up_and_down, [0.0] * 40) == [""] * 40, "a reward that says nothing was not exploited"
    assert course(up_and_down, [2.5 * gold for gold in up_and_down]) == [""] * 40, "both fall: the policy got worse"


def test_the_commonest_answer_is_counted_once_it_is_given_twice() -> None:
    assert commonest_share(["a", "b", "a", "a"]) == 0.75
    assert commonest_share(["a", "b"]) == 0.0 and commonest_share([]) == 0.0


def test_a_single_odd_step_trips_nothing() -> None:
    monitor = MonitorHistory()
    for step in range(20):
        monitor.observe(steady(step))
    assert monitor.observe(steady(20, lengths=[600] * 32, duplicate_share=0.9)).tripped == ""


def test_a_train_verifier_that_was_the_harsher_one_and_no_longer_is_was_not_exploited() -> None:
    monitor, tripped = MonitorHistory(), []
    for step in range(30):
        scores = [float(i % 10 < 3 + min(step // 3, 6)) for i in range(60)]
        second = [max(score, float(i % 10 < 6)) for i, score in enumerate(scores)]
        tripped.append(monitor.observe(Observation(scores, second, [9] * 60, 1.0, 0.1)).tripped)
    assert tripped == [""] * 30


def test_a_gap_within_its_noise_trips_nothing() -> None:
    """Two rollouts a step say little, however far apart their mean."""
    monitor = MonitorHistory()
    for _ in range(10):
        monitor.observe(Observation([1.0, 0.0], [1.0, 0.0], [5], 1.0, 0.0))
    found = monitor.observe(Observation([1.0, 1.0], [0.0, 0.0], [5], 1.0, 0.0))
    assert found.drift["gap_rise"] > 0.15 and found.tripped == ""


def test_rollouts_that_could_not_be_scored_are_left_out_of_the_gap() -> None:
    row = figures(Observation([1.0, math.nan, 1.0], [0.0, 1.0, math.nan], [1], 1.0, 0.0))
    assert (row["pairs"], row["gap_sum"]) == (1.0, 1.0)


def test_the_gaps_standard_error_is_that_of_the_pooled_sample() -> None:
    rng = random.Random(4)
    gaps = [[rng.gauss(0.2, 1.0) for _ in range(n)] for n in (5, 17, 3)]
    rows = [figures(Observation(g, [0.0] * len(g), [1], 1.0, 0.0)) for g in gaps]
    pooled = [gap for step in gaps for gap in step]
    found = drifts(rows, rows, rows)
    assert found["gap"] == pytest.approx(statistics.fmean(pooled))
    single = statistics.stdev(pooled) / math.sqrt(len(pooled))
    assert found["gap_rise_error"] == pytest.approx(math.sqrt(2) * single)


def test_a_resumed_monitor_decides_as_one_that_never_stopped() -> None:
    whole, halved = MonitorHistory(MonitorLimits(window=3)), MonitorHistory(MonitorLimits(window=3))
    for step in range(12):
        seen = steady(step, lengths=[100 + 40 * step] * 32)
        assert whole.observe(seen) == halved.observe(seen)
        halved = MonitorHistory.from_dict(json.loads(json.dumps(halved.to_dict())))
    assert whole == halved
    with pytest.raises(ValueError, match="another version"):
        MonitorHistory.from_dict({"limits": {}})


def test_duplicates_are_counted_beyond_the_first() -> None:
    assert duplicate_share(["a", "b", "a", "a"]) == 0.5 and duplicate_share([]) == 0.0


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="window 0"):
        MonitorLimits(window=0)
    with pytest.raises(ValueError, match="length_factor"):
        MonitorLimits(length_factor=0.5)
