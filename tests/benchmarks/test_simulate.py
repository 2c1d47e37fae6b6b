"""The simulation of docs/scale.md against cases that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import simulate
from benchmarks.simulate import Cluster, engine_s, in_turns, lengths_of, one_ahead

PLAIN = Cluster(engines=1, places=2, token_s=1.0, token_s_each=0.0)


def test_an_engine_is_as_slow_as_its_longest_answer():
    assert engine_s(PLAIN, [10, 3]) == 10.0


def test_a_place_that_comes_free_is_taken_at_once():
    """3 and 10 start, 4 follows the 3 and ends at 7: 10 in all; in the other order 7 follows 3 and all end at 10."""
    assert engine_s(PLAIN, [10, 3, 4]) == 10.0
    assert engine_s(PLAIN, [3, 4, 10]) == 13.0


def test_each_live_sequence_makes_a_step_dearer():
    """Two live for 3 tokens at 1.2 s, one for 7 more at 1.1 s."""
    cluster = Cluster(engines=1, places=2, token_s=1.0, token_s_each=0.1)
    assert engine_s(cluster, [10, 3]) == pytest.approx(3 * 1.2 + 7 * 1.1)


def test_overlap_hides_the_shorter_of_the_two():
    assert in_turns([4, 4, 4], [3, 3, 3], 1) == 8
    assert one_ahead([4, 4, 4], [3, 3, 3], 1) == 5
    assert one_ahead([4, 6, 2], [3, 3, 3], 0) == (6 + 3) / 2, "the rollout of a step stands beside the update before it"


def test_lengths_have_the_wanted_mean_whatever_their_spread():
    import random

    for sigma in (0.0, 0.5, 1.0):
        lengths = lengths_of(Cluster(sigma=sigma, samples=40_000, mean_tokens=1000), random.Random(1))
        assert sum(lengths) / len(lengths) == pytest.approx(1000, rel=0.03)


def test_a_measured_pair_of_runs_is_read_and_set_beside_the_model(tmp_path: Path):
    rows = {"plain": {"rollout": 4.0, "experience": 1.0, "update": 3.0, "sync": 0.5},
            "ahead": {"rollout": 0.0, "experience": 1.0, "update": 3.6, "wait": 1.0, "sync": 0.5}}  # fmt: skip
    for name, row in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    out = simulate.compare(tmp_path / "plain", tmp_path / "ahead")
    assert out["in_turns_s"] == 8.5 and out["one_ahead_s"] == pytest.approx(6.1) and out["predicted_s"] == 5.5
    assert out["stretched"] == pytest.approx(1.2)
