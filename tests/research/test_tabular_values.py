"""Values of logged steps against closed forms of small Markov chains, worked out by hand."""

import random

import numpy as np
import pytest

from pipeline.research.tabular_values import (
    DepthLimitedSearch,
    Dyna,
    RewardWeightedSuccessors,
    SuccessorFeatures,
    TDLearner,
    Transition,
)

GAMMA = 0.5
# x -> y -> x -> ... for ever: arriving at y pays 3, at x pays 1
CYCLE = [Transition("x", "go", 3.0, "y", False), Transition("y", "go", 1.0, "x", False)]
# A -> B (-0.3) -> C -> D (1) and A -> E (0.4) -> F -> G (0)
OLD = [
    Transition("A", "B", -0.3, "B", False),
    Transition("B", "C", 0.0, "C", False),
    Transition("C", "D", 1.0, "D", True),
    Transition("A", "E", 0.4, "E", False),
    Transition("E", "F", 0.0, "F", False),
    Transition("F", "G", 0.0, "G", True),
]
G_PAYS, D_PAYS_NOTHING = Transition("F", "G", 1.0, "G", True), Transition("C", "D", 0.0, "D", True)
SHORTCUT = Transition("A", "C", 0.0, "C", False)
NEW_PATH = Transition("E", "B", -0.3, "B", False)


def after(learner, *new):
    learner.settle(OLD, passes=4)
    learner.learn(new)
    return learner.values()


@pytest.mark.parametrize("learner", [TDLearner, SuccessorFeatures, RewardWeightedSuccessors])
def test_values_on_an_endless_cycle_are_geometric_series(learner):
    one = learner(gamma=GAMMA)
    one.settle(CYCLE, passes=60)
    ratio = 1 / (1 - GAMMA**2)  # 1 + gamma^2 + gamma^4 + ...
    assert one.values()["x", "go"] == pytest.approx((3 + GAMMA * 1) * ratio)
    assert one.values()["y", "go"] == pytest.approx((1 + GAMMA * 3) * ratio)


def test_successor_features_are_the_discounted_numbers_of_later_arrivals():
    one = SuccessorFeatures(gamma=GAMMA)
    one.settle(CYCLE, passes=60)
    move = np.array([[0.0, 1.0], [1.0, 0.0]])  # rows x, y: where a step arrives
    closed = move @ np.linalg.inv(np.eye(2) - GAMMA * move)
    assert [one.psi["x", "go"][s] for s in "xy"] == pytest.approx(closed[0])
    assert [one.psi["y", "go"][s] for s in "xy"] == pytest.approx(closed[1])
    assert one.w == {"y": 3.0, "x": 1.0}


def test_reward_weighted_successors_are_the_same_numbers_in_units_of_reward():
    one = RewardWeightedSuccessors(gamma=GAMMA)
    one.settle(CYCLE, passes=60)
    ratio = 1 / (1 - GAMMA**2)
    assert one.h["x", "go"] == {"y": pytest.approx(3 * ratio), "x": pytest.approx(GAMMA * ratio)}


@pytest.mark.parametrize("learner", [TDLearner, SuccessorFeatures, RewardWeightedSuccessors])
def test_before_a_change_every_table_has_the_returns_of_the_best_continuations(learner):
    values = after(learner())
    assert values == pytest.approx({("A", "B"): 0.7, ("B", "C"): 1.0, ("C", "D"): 1.0, ("A", "E"): 0.4,
                                    ("E", "F"): 0.0, ("F", "G"): 0.0})  # fmt: skip


def test_a_reward_that_appears_is_right_at_once_with_successor_features_only():
    assert after(TDLearner(), G_PAYS)["A", "E"] == pytest.approx(0.4)
    assert after(RewardWeightedSuccessors(), G_PAYS)["A", "E"] == pytest.approx(0.4), "G paid nothing: no component"
    assert after(SuccessorFeatures(), G_PAYS)["A", "E"] == pytest.approx(1.4)


def test_a_reward_that_ends_is_right_at_once_with_both_kinds_of_successors():
    assert after(TDLearner(), D_PAYS_NOTHING)["A", "B"] == pytest.approx(0.7)
    assert after(RewardWeightedSuccessors(), D_PAYS_NOTHING)["A", "B"] == pytest.approx(-0.3)
    assert after(SuccessorFeatures(), D_PAYS_NOTHING)["A", "B"] == pytest.approx(-0.3)


def test_a_paid_arrival_that_pays_double_doubles_its_component_alone():
    values = after(RewardWeightedSuccessors(), Transition("C", "D", 2.0, "D", True))
    assert values["A", "B"] == pytest.approx(-0.3 + 2.0) and values["A", "E"] == pytest.approx(0.4)


@pytest.mark.parametrize("learner", [TDLearner, SuccessorFeatures, RewardWeightedSuccessors])
def test_a_shortcut_from_the_place_of_choice_is_right_at_once_and_a_new_path_behind_it_is_not(learner):
    assert after(learner(), SHORTCUT)["A", "C"] == pytest.approx(1.0)
    values = after(learner(), NEW_PATH)
    assert values["E", "B"] == pytest.approx(0.7) and values["A", "E"] == pytest.approx(0.4)
    caught_up = after(learner(), NEW_PATH, Transition("A", "E", 0.4, "E", False))
    assert caught_up["A", "E"] == pytest.approx(1.1)


def test_search_is_right_as_soon_as_it_looks_as_far_as_the_changed_value():
    for depth, found in ((0, 0.4), (1, 0.4), (2, 1.4), (3, 1.4)):
        assert after(DepthLimitedSearch(depth=depth), G_PAYS)["A", "E"] == pytest.approx(found), depth
    for depth, found in ((0, 0.4), (1, 1.1)):
        assert after(DepthLimitedSearch(depth=depth), NEW_PATH)["A", "E"] == pytest.approx(found), depth


def test_dyna_with_enough_planning_is_the_best_return_and_without_any_is_td():
    enough = after(Dyna(planning=400, rng=random.Random(1)), G_PAYS)
    assert enough == pytest.approx({("A", "B"): 0.7, ("B", "C"): 1.0, ("C", "D"): 1.0, ("A", "E"): 1.4,
                                    ("E", "F"): 1.0, ("F", "G"): 1.0})  # fmt: skip
    assert after(Dyna(planning=0, rng=random.Random(1)), G_PAYS) == after(TDLearner(), G_PAYS)


def test_half_the_rate_moves_a_value_half_of_the_way():
    one = TDLearner(rate=0.5)
    one.learn([Transition("F", "G", 1.0, "G", True)] * 2)
    assert one.values()["F", "G"] == pytest.approx(0.75)
