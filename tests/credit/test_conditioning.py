"""Bins and labels. Quantiles are held against numpy's, labels and warnings against words written by hand."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from pipeline.credit.conditioning import (
    Axis,
    Conditions,
    balanced,
    bin_of,
    calibration_error,
    from_prompt_mean,
    quantile_edges,
    shuffled,
    some_dropped,
)

REWARD = Axis("reward", (0.25, 0.75), "<{bin}> ").fitted([0.0, 0.1, 0.5, 0.5, 1.0])
SHORT = Axis("length", (4.0,), ":{bin}>", of="length", prefer="low").fitted([2.0, 9.0])
BOTH = Conditions((REWARD, SHORT))


def test_quantile_bins_of_distinct_rewards_are_numpys_and_of_equal_size():
    rewards = list(np.random.default_rng(0).permutation(1000) / 1000)
    edges = quantile_edges(rewards, 5)
    assert edges == pytest.approx(np.quantile(rewards, [0.2, 0.4, 0.6, 0.8], method="higher"), abs=1e-3)
    assert Counter(bin_of(r, edges) for r in rewards) == dict.fromkeys(range(5), 200)


def test_equal_rewards_share_a_bin_however_many_bins_were_asked_for():
    edges = quantile_edges([0.0] * 50 + [1.0] * 50, 5)
    assert edges == [1.0]
    assert [bin_of(r, edges) for r in (0.0, 1.0)] == [0, 1]


def test_equal_rewards_alone_are_refused_in_words():
    with pytest.raises(ValueError, match=r"all rewards are 0\.5"):
        quantile_edges([0.5, 0.5], 4)
    with pytest.raises(ValueError, match="no scorable"):
        quantile_edges([math.nan], 4)


def test_a_reward_on_an_edge_is_in_the_bin_above():
    assert [bin_of(r, [0.25, 0.75]) for r in (-1, 0.2499, 0.25, 0.7499, 0.75, 9)] == [0, 0, 1, 1, 2, 2]


def test_an_axis_knows_what_it_saw_and_what_each_bin_promises():
    assert REWARD.seen == (2, 2, 1)
    assert REWARD.promised == pytest.approx((0.05, 0.5, 1.0))
    assert REWARD.bounds(0) == [None, 0.25] and REWARD.bounds(2) == [0.75, None]


def test_best_is_the_preferred_end_of_what_was_seen():
    assert REWARD.best == 2 and SHORT.best == 0
    assert Axis("reward", (0.25, 0.75), "{bin}").fitted([0.0, 0.5]).best == 1  # nothing above was ever seen


def test_a_label_without_its_bin_is_refused():
    with pytest.raises(ValueError, match=r"must hold \{bin\}"):
        Axis("reward", (0.5,), "<good>")


@pytest.mark.parametrize(
    ("ask", "text"),
    [("best", "<2> :0>"), ("none", ""), ("", ""), ("1", "<1> "), ("length=1", ":1>"), ("length=0 reward=2", "<2> :0>"),
     ("reward=best", "<2> ")],
)  # fmt: skip
def test_what_is_asked_becomes_the_label_in_the_order_of_the_axes(ask, text):
    assert BOTH.text(BOTH.parse(ask)) == text


@pytest.mark.parametrize(("ask", "words"), [("colour=1", "have: reward, length"), ("worst", "best, none, a bin")])
def test_what_cannot_be_asked_is_reported(ask, words):
    with pytest.raises(ValueError, match=words):
        BOTH.parse(ask)


def test_asking_beyond_the_bins_or_in_an_empty_one_warns():
    empty = Conditions((Axis("reward", (0.25, 0.75), "<{bin}> ").fitted([0.0, 1.0]),))
    assert BOTH.warnings({"reward": 2, "length": 0}) == []
    assert "beyond the bins trained, 0 to 2" in BOTH.warnings({"reward": 3})[0]
    assert "no training sample" in empty.warnings({"reward": 1})[0]


def test_conditions_survive_json():
    lonely = Conditions((Axis("reward", (0.25, 0.75), "<{bin}> ").fitted([0.0, 1.0]), SHORT))
    back = Conditions.from_json(lonely.as_json())
    assert back.axes[1] == SHORT and back.axes[0].seen == (1, 0, 1) and math.isnan(back.axes[0].promised[1])


def test_every_bin_that_occurs_is_drawn_equally_and_whole_before_twice():
    cells = [(0, 1)] * 3 + [(1, 0)] * 50
    places = balanced(cells, per_bin=10, seed=0)
    assert Counter(cells[i] for i in places) == {(0, 1): 10, (1, 0): 10}
    rare = Counter(i for i in places if cells[i] == (0, 1))
    assert sorted(rare.values()) == [3, 3, 4]
    assert max(Counter(i for i in places if cells[i] == (1, 0)).values()) == 1


def test_labels_are_dropped_at_the_share_asked_for():
    n = 20_000
    rng = random.Random(0)
    left = Counter(tuple(sorted(some_dropped({"a": 1, "b": 2}, 0.2, rng))) for _ in range(n))
    expected = {(): 0.2 + 0.8 * 0.04, ("a",): 0.8 * 0.16, ("b",): 0.8 * 0.16, ("a", "b"): 0.8 * 0.64}
    for names, p in expected.items():
        assert abs(left[names] / n - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert some_dropped({"a": 1}, 0.0, rng) == {"a": 1}


def test_shuffled_labels_are_the_same_labels_and_know_nothing_of_the_sample():
    bins = [i % 5 for i in range(5000)]
    other = shuffled(bins, seed=1)
    assert Counter(other) == Counter(bins)
    assert abs(np.corrcoef(bins, other)[0, 1]) < 4 / math.sqrt(5000)


def test_length_for_this_question_is_not_length():
    assert from_prompt_mean([3, 5, 10, 20], [0, 0, 1, 1]) == [-1, 1, -5, 5]


def test_calibration_error_is_the_mean_gap_and_leaves_out_what_was_never_promised():
    assert calibration_error([0.5, 0.9, 0.1], [0.4, 1.0, math.nan]) == pytest.approx(0.1)
    assert math.isnan(calibration_error([0.5], [math.nan]))
