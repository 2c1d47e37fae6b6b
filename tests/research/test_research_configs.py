"""The rewards and demonstrations of configs/research, on answers worked out by hand."""

import importlib.util
import math
from pathlib import Path

import pytest

import verifiers
from verifiers import gridworld

ROOT = Path(__file__).parents[2] / "configs" / "research"
A1_TO_C1 = {"start": "a1", "goal": "c1"}


def module(name):
    spec = importlib.util.spec_from_file_location(f"research_{name}", ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def reward(name, path, start="a1", goal="c1"):
    return getattr(module("shaped"), name)(completions=[path], start=[start], goal=[goal])[0]


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [("arrives", "RR", 1.0), ("arrives", "R", 0.0), ("arrives", "RRL", 0.0), ("arrives", "LRR", 0.0),
     ("progress", "RR", 0.5), ("progress", "RLRLRR", 1.0), ("visits", "RLRL", 0.1), ("visits", "UU", 0.2),
     ("brevity", "R", 14 / 15), ("brevity", "", 0.0), ("nearness", "RR", 1.0), ("nearness", "R", 7 / 8),
     ("nearness", "L", 0.0)],
)  # fmt: skip
def test_a_shaped_reward_pays_what_its_docstring_says(name, path, value):
    assert reward(name, path) == pytest.approx(value)


def test_going_back_and_forth_pays_more_progress_than_arriving():
    assert reward("progress", "RLRLRLRL") > reward("progress", "RR")


def test_step_rewards_of_the_potential_sum_to_the_distance_at_the_start_however_the_walk_goes():
    from rewards.steps import potential_differences

    for path in ("RR", "UDLR", "RLRLRL", "UUUU"):
        ids = list(range(len(path) + 1))  # one token per move, and the end token
        steps = module("shaped").potential("a1>c1:", path, ids, A1_TO_C1)
        assert [end for end, _ in steps] == ids
        total = sum(potential_differences([phi for _, phi in steps]))
        assert total == pytest.approx(2 / 8), "two moves away, in units of eight"


def test_a_demonstration_is_a_shortest_path_and_always_the_same():
    one_path = verifiers.load("one_path", [str(ROOT / "verifiers")]).module
    rows = list(one_path.generate(462, seed=1))
    assert len({row["prompt"] for row in rows}) == 462
    again = {row["prompt"]: row["completion"] for row in one_path.generate(462, seed=2)}
    for row in rows:
        verdict = gridworld.verify(row["completion"], row["task"])
        assert verdict.status == "pass" and verdict.score == 1.0, "no detour"
        assert again[row["prompt"]] == row["completion"] == row["task"]["gold"]


def test_attributes_of_a_walk_are_its_last_column_and_whether_it_enters_row_3():
    described = module("described")
    walks = {"RR": (2.0, 0.0), "UU": (0.0, 1.0), "": (0.0, 0.0), "UUD": (0.0, 1.0), "RRRR": (4.0, 0.0)}
    assert described.column(list(walks), ["a1"] * 5) == [column for column, _ in walks.values()]
    assert described.row_three(list(walks), ["a1"] * 5) == [row for _, row in walks.values()]
    assert described.row_three(["U"], ["a3"]) == [0.0], "where it starts does not count"


def test_a_draft_of_lines_is_right_as_often_as_the_binomial_law_says():
    lines = verifiers.load("lines", [str(ROOT / "verifiers")]).module
    rows = list(lines.generate(4000, seed=1))
    a_line = sum(math.comb(5, k) * 0.72**k * 0.28 ** (5 - k) for k in (3, 4, 5))
    share = sum(lines.verify(row["draft"], row["task"]).status == "pass" for row in rows) / len(rows)
    assert share == pytest.approx(a_line**10, abs=0.03), "four standard errors"


@pytest.mark.parametrize("name", ["lines", "one_path", "walks"])
def test_verifiers_beside_the_configs_pass_the_kit(name):
    from verifiers.kit import check_all

    assert check_all([name], [str(ROOT / "verifiers")]) == 0
