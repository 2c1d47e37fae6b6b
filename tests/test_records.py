import json
import math
from typing import Any

import pytest

from pipeline.records import Prompt, Rollout, Scored, as_json, from_json, groups, read_scored
from pipeline.seeds import cycle_indices, derive
from pipeline.stats import tally


def scored(prompt=0, sample=0, reward=1.0, status="pass"):
    where = Prompt(prompt, "a1>b2:", (5, 6), {"start": "a1", "goal": "b2"})
    rollout = Rollout(where, sample, (7, 8, 2), (-0.5, -0.25, -0.125), "RU", True)
    return Scored(rollout, reward, status, {"gridworld": None if math.isnan(reward) else reward}, "x")


def test_a_row_written_and_read_is_the_same_row():
    one = scored()
    assert from_json(json.loads(json.dumps(as_json(one, step=3)))) == one


def test_a_broken_checker_is_null_on_disk_and_never_zero():
    row = as_json(scored(reward=math.nan, status="error"))
    assert row["reward"] is None and not from_json(row).scorable


def test_a_line_that_is_no_rollout_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(as_json(scored())) + "\n{}\n")
    with pytest.raises(ValueError, match=r"r\.jsonl:2: not a scored rollout"):
        list(read_scored(path))


def test_groups_hold_the_samples_of_a_prompt_in_order():
    rows = [scored(p, s) for p in (4, 1) for s in range(3)]
    assert [[s.rollout.prompt.index for s in g] for g in groups(rows)] == [[4] * 3, [1] * 3]


def test_a_tally_keeps_wrong_malformed_and_broken_apart():
    rows = [scored(reward=1.0), scored(reward=0.0, status="fail"), scored(reward=0.0, status="malformed"),
            scored(reward=math.nan, status="error")]  # fmt: skip
    t = tally(rows)
    assert (t.passed, t.malformed, t.broken) == (1 / 3, 0.25, 0.25), "nobody knows whether a broken row is right"
    assert t.reward_mean == pytest.approx(1 / 3) and t.reward_std == pytest.approx(math.sqrt(2 / 9))


def test_an_endless_walk_visits_each_item_once_a_pass_and_can_be_entered_anywhere():
    whole = cycle_indices(7, 0, 21, 1, "x")
    assert all(sorted(whole[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert whole[:7] != whole[7:14]
    assert [i for start in range(0, 21, 3) for i in cycle_indices(7, start, 3, 1, "x")] == whole


def test_seeds_are_functions_of_their_key_alone():
    assert derive(1, "grpo", 3) == derive(1, "grpo", 3)
    keys: list[tuple[Any, ...]] = [
        (1, "grpo", 3),
        (1, "grpo", 4),
        (2, "grpo", 3),
        (1, "ppo", 3),
        (1, "grpo", "3 "),
        (13, "grpo"),
        (1, "3grpo"),
    ]
    assert len({derive(*k) for k in keys}) == len(keys)
