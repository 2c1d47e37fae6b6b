"""Filters of scored samples. Expected sets are written out by hand; laws of chance are held against their formulas."""

import math
import random
from collections import Counter, defaultdict
from itertools import permutations
from typing import Any

import pytest

from pipeline.credit.filter_lint import lint
from pipeline.credit.selection import (
    FILTERS,
    Candidate,
    FilterRound,
    blind,
    ngrams,
    parse,
    pass_rates,
    select,
)

NAN = math.nan


def rows(*specs):
    """(prompt, reward) or (prompt, reward, key) -> candidates, keys all different unless given."""
    return [
        Candidate(spec[0], spec[1], spec[2] if len(spec) > 2 else (100 + i,), passed=spec[1] > 0)
        for i, spec in enumerate(specs)
    ]


def chosen(candidates, *specs, number=0, seed=0):
    return select(candidates, parse(specs), FilterRound(number, seed))


MIXED = rows((0, 0.0), (0, 1.0), (0, 0.5), (1, 0.25), (1, 0.25), (2, NAN), (2, 1.0))


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ({"threshold": 0.5}, [1, 2, 6]),
        ({"top_k": 1}, [1, 3, 6]),  # of equal rewards the earlier sample
        ({"top_k": 2}, [1, 2, 3, 4, 6]),
        ("best_of_n", [1, 3, 6]),
        ({"quantile": 0.5}, [1, 2, 6]),
        ({"cap": 1}, [1, 3, 6]),
        ("teachable", [0, 1, 2]),  # prompts 1 and 2 passed every time
        ({"teachable": {"low": 0.5, "high": 0.9}}, [0, 1, 2]),
        ({"teachable": {"high": 0.5}}, []),
        ({"correct_shortest": 1}, [1, 3, 6]),
    ],
)
def test_each_filter_keeps_what_a_hand_picks(spec, kept):
    assert chosen(MIXED, spec) == kept


def test_a_sample_that_could_not_be_scored_is_never_kept_nor_counted():
    assert 5 not in chosen(MIXED)
    assert pass_rates(MIXED) == {0: 2 / 3, 1: 1.0, 2: 1.0}
    assert 5 not in blind(MIXED, {2: 2}, seed=0)


def test_correct_and_shortest_ignores_short_wrong_answers_and_reward():
    candidates = [
        Candidate(0, 0.0, (1,), passed=False),
        Candidate(0, 0.5, (1, 2), passed=True),
        Candidate(0, 1.0, (1, 2, 3), passed=True),
    ]
    assert chosen(candidates, "correct_shortest") == [1]
    assert chosen(candidates, {"correct_shortest": 2}) == [1, 2]


def test_exact_dedup_keeps_the_first_of_each_prompt():
    candidates = rows((0, 1.0, (7, 8)), (1, 1.0, (7, 8)), (0, 1.0, (7, 8)), (0, 1.0, (8, 7)))
    assert chosen(candidates, "dedup") == [0, 1, 3]


def test_ngram_dedup_drops_near_copies_and_keeps_other_ways():
    candidates = rows((0, 1.0, (1, 2, 3, 4, 5, 6)), (0, 1.0, (1, 2, 3, 4, 5, 7)), (0, 1.0, (6, 5, 4, 3, 2, 1)))
    # of pairs (1 2)(2 3)(3 4)(4 5)(5 6) and ...(5 7): 4 of 6 shared
    assert chosen(candidates, {"dedup": {"ngram": 2, "at_most": 0.6}}) == [0, 2]
    assert chosen(candidates, {"dedup": {"ngram": 2, "at_most": 0.7}}) == [0, 1, 2]
    assert ngrams((1, 2), 3) == {(1, 2)}


def test_thresholds_and_quantiles_rise_with_the_round():
    candidates = rows(*((0, i / 10) for i in range(10)))
    assert len(chosen(candidates, {"quantile": {"q": 0.5, "rise": 0.2}})) == 5
    assert len(chosen(candidates, {"quantile": {"q": 0.5, "rise": 0.2}}, number=1)) == 3
    assert len(chosen(candidates, {"quantile": {"q": 0.5, "rise": 0.2}}, number=9)) == 1  # the best is always left
    rising = {"threshold": {"at_least": 0.5, "rise": 0.2}}
    assert [len(chosen(candidates, rising, number=n)) for n in (0, 1, 2)] == [5, 3, 1]


def test_filters_are_applied_in_the_order_they_are_named():
    candidates = rows((0, 1.0, (1,)), (0, 1.0, (1,)), (0, 0.5, (2,)))
    assert chosen(candidates, "dedup", {"top_k": 2}) == [0, 2]
    assert chosen(candidates, {"top_k": 2}, "dedup") == [0]


def test_softmax_draws_each_set_as_often_as_the_formula_says():
    rewards, temperature, draws = (0.0, 0.5, 1.0), 0.5, 4000
    candidates = rows(*((0, r) for r in rewards))
    seen = Counter(tuple(chosen(candidates, {"softmax": {"n": 2, "temperature": temperature}}, seed=s))
                   for s in range(draws))  # fmt: skip
    weights = [math.exp(r / temperature) for r in rewards]
    expected: dict[tuple[int, ...], float] = defaultdict(float)
    for first, second in permutations(range(3), 2):  # without replacement: one after the other
        p = weights[first] / sum(weights) * weights[second] / (sum(weights) - weights[first])
        expected[tuple(sorted((first, second)))] += p
    for pair, p in expected.items():
        assert abs(seen[pair] / draws - p) < 4 * math.sqrt(p * (1 - p) / draws)


def test_reward_weighted_draws_in_proportion_and_never_the_lowest():
    candidates = rows((0, 0.0), (0, 0.25), (0, 0.75))
    seen = Counter(chosen(candidates, {"reward_weighted": 1}, seed=s)[0] for s in range(4000))
    assert seen[0] == 0
    assert abs(seen[2] / 4000 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_monotone_keeps_with_a_probability_that_rises_with_the_reward(power):
    candidates = rows(*((i, r) for i in range(2000) for r in (0.0, 0.25, 0.5, 1.0)))
    kept = Counter(candidates[i].reward for i in chosen(candidates, {"monotone": power}))
    for reward in (0.0, 0.25, 0.5, 1.0):
        p = reward**power
        assert abs(kept[reward] / 2000 - p) <= 4 * math.sqrt(p * (1 - p) / 2000)


def test_monotone_keeps_all_where_all_earned_the_same():
    assert chosen(rows((0, 0.5), (1, 0.5)), "monotone") == [0, 1]


@pytest.mark.parametrize("name", ["softmax", "reward_weighted", "monotone"])
def test_chance_is_a_function_of_seed_and_round_alone(name):
    candidates = rows(*((i % 20, random.Random(i).random()) for i in range(200)))
    spec = {name: {"n": 3}} if name != "monotone" else name
    assert chosen(candidates, spec, seed=3) == chosen(candidates, spec, seed=3)
    assert chosen(candidates, spec, seed=3) != chosen(candidates, spec, seed=4)
    assert chosen(candidates, spec, seed=3) != chosen(candidates, spec, seed=3, number=1)


@pytest.mark.parametrize("name", sorted(set(FILTERS) - {"threshold", "quantile"}))
def test_filters_of_a_prompt_are_unmoved_by_other_prompts_being_there(name):
    """All but those that compare over the whole batch; monotone takes its range from it, so both ends stay in."""
    if name in ("softmax", "monotone"):
        pytest.skip("random: draws are shared over the batch")
    spec = {"top_k": {"top_k": 2}, "cap": {"cap": 2}, "reward_weighted": {"reward_weighted": 8}}.get(name, name)
    one = rows((0, 0.25), (0, 1.0), (0, 0.0))
    both = one + rows((1, 0.0), (1, 1.0))
    assert [i for i in chosen(both, spec) if i < 3] == chosen(one, spec)


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_every_filter_keeps_some_of_what_it_was_given_in_order_and_nothing_of_nothing(name):
    first: dict[str, float] = {
        "threshold": 0.5,
        "quantile": 0.5,
        "top_k": 2,
        "cap": 2,
        "softmax": 2,
        "reward_weighted": 2,
    }
    spec: Any = {name: first[name]} if name in first else name
    kept = chosen(MIXED, spec)
    assert kept == sorted(set(kept)) and set(kept) <= set(chosen(MIXED))
    assert parse([spec])[0](MIXED, [], FilterRound()) == []


def test_the_control_keeps_as_many_of_each_prompt_and_does_not_look_at_the_reward():
    candidates = rows(*((i // 8, float(i % 8 == 0)) for i in range(800)))
    kept = chosen(candidates, {"threshold": 1.0})
    control = blind(candidates, Counter(candidates[i].prompt for i in kept), seed=1)
    assert Counter(candidates[i].prompt for i in control) == Counter(candidates[i].prompt for i in kept)
    share = sum(candidates[i].reward for i in control) / len(control)
    assert abs(share - 1 / 8) < 4 * math.sqrt(1 / 8 * 7 / 8 / len(control))
    flipped = [Candidate(c.prompt, 1 - c.reward, c.key) for c in candidates]
    assert blind(flipped, Counter(flipped[i].prompt for i in kept), seed=1) == control


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("threshhold", "no filter 'threshhold'"),
        ("threshold", "needs at_least"),
        ({"threshold": "high"}, "at_least must be a number"),
        ({"threshold": True}, "at_least must be a number"),
        ({"top_k": 0}, "at least 1"),
        ({"top_k": 1.5}, "whole number"),
        ({"quantile": 1.5}, "from 0 to 1"),
        ({"softmax": {"n": 2, "temp": 1}}, "no parameter 'temp'"),
        ({"best_of_n": 4}, "takes no value"),
        ({"top_k": 1, "dedup": None}, "one {name: value}"),
    ],
)
def test_a_wrong_filter_is_reported_by_name_and_fix(spec, words):
    with pytest.raises(ValueError, match=words):
        parse([spec])


# --- the lint ------------------------------------------------------------------------------------------------------


def even_grid() -> list[Candidate]:
    """Every level equally often, lengths unrelated."""
    draw = random.Random(0)
    return [
        Candidate(prompt, reward := draw.choice((0.0, 0.25, 0.5, 0.75, 1.0)), (0,) * draw.randint(1, 12), reward > 0)
        for prompt in range(250)
        for _ in range(8)
    ]


@pytest.mark.parametrize(
    ("specs", "bucket"),
    [
        ([{"threshold": 0.25}, "dedup"], True),
        ([{"threshold": 0.5}, {"cap": 8}], True),
        (["correct_shortest"], True),  # where length says nothing of the reward
        ([{"quantile": 0.5}], True),
        ([{"threshold": 1.0}, "dedup", {"cap": 4}], False),
        (["best_of_n"], False),
        (["monotone"], False),
        ([{"threshold": 0.25}, {"softmax": {"n": 2}}], False),
    ],
)
def test_the_lint_distinguishes_a_bucket_from_a_filter_that_climbs(specs, bucket):
    finding = lint(parse(specs), even_grid())
    assert finding.is_bucket is bucket
    assert ("bucket" in (finding.message or "")) is bucket


def test_the_lint_names_the_plateau_that_imitation_ends_on():
    finding = lint(parse([{"threshold": 0.5}]), even_grid())
    kept = [c.reward for c in even_grid() if c.reward >= 0.5]
    assert finding.plateau == pytest.approx(sum(kept) / len(kept))
    assert finding.message is not None
    assert f"{finding.plateau:.2f}" in finding.message and "raise the threshold to 1" in finding.message


def test_repeated_good_answers_do_not_make_a_climbing_filter_look_like_a_bucket():
    """Best answers are all alike, so dedup alone would seem to avoid them."""
    candidates = [Candidate(i, 1.0, (1, 2), True) for i in range(50) for _ in range(6)]
    candidates += [Candidate(i, 0.25, (i, j), True) for i in range(50) for j in range(2)]
    assert not lint(parse(["dedup", "monotone"]), candidates).is_bucket


def test_a_learned_reward_is_judged_by_levels():
    rng = random.Random(0)
    candidates = [Candidate(i // 8, rng.gauss(0, 1), (i,), True) for i in range(4000)]
    assert lint(parse([{"threshold": -0.5}]), candidates).is_bucket
    assert not lint(parse([{"top_k": 1}]), candidates).is_bucket


def test_a_sample_whose_checker_broke_counts_neither_as_passed_nor_as_failed():
    """By hand: of three samples one passed, one failed, one has a reward but a broken checker of weight 0: 1 of 2."""
    candidates = [Candidate(0, 1.0, (1,)), Candidate(0, 0.0, (2,), passed=False), Candidate(0, 0.5, (3,), passed=None)]
    assert pass_rates(candidates) == {0: 0.5}
