"""Preference pairs from scored samples: what beats what, and what a corruption may and may not be."""

import math
import random
from types import SimpleNamespace

import pytest

import rewards
from pipeline.config.load import ConfigError
from pipeline.records import Prompt, Rollout, Scored
from pipeline.stages.reward_model import corruptions, fitting, max_length, preference_pairs, worse

END = 2
MOVES = {"R": 10, "L": 11, "U": 12, "D": 13}
TEXT = {i: move for move, i in MOVES.items()}
TASK = {"start": "a1", "goal": "c1"}


def sample(text, reward, *, prompt=0, status=None, finished=True):
    where = Prompt(prompt, "a1>c1:", (5, prompt), TASK)
    ids = tuple(MOVES[m] for m in text) + ((END,) if finished else ())
    rollout = Rollout(where, 0, ids, (0.0,) * len(ids), text, finished)
    status = status or ("error" if math.isnan(reward) else "pass" if reward > 0 else "fail")
    return Scored(rollout, reward, status, {"gridworld": reward})


class Tokenizer:
    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(TEXT[i] for i in row if i in TEXT) for row in rows]


@pytest.fixture
def ctx():
    return SimpleNamespace(tokenizer=Tokenizer(), scorer=rewards.build({"gridworld": {"weight": 1.0}}))


def test_chosen_always_earned_more_than_rejected_and_answers_the_same_prompt():
    scored = [sample("RR", 1.0), sample("RRLR", 0.75), sample("U", 0.0), sample("RR", 1.0, prompt=1)]
    pairs = preference_pairs(scored, per_prompt=10, rng=random.Random(0))
    earned = {s.rollout.ids: s.reward for s in scored}
    assert len(pairs) == 3  # 1 > .75, 1 > 0, .75 > 0; the second prompt has nothing to compare
    assert all(prompt == (5, 0) and earned[chosen] > earned[rejected] for prompt, chosen, rejected in pairs)


def test_widest_gap_comes_first_and_no_more_than_asked_for():
    scored = [sample("RR", 1.0), sample("RRLR", 0.75), sample("U", 0.0)]
    [(_, chosen, rejected)] = preference_pairs(scored, per_prompt=1, rng=random.Random(0))
    assert (chosen, rejected) == (scored[0].rollout.ids, scored[2].rollout.ids)


def test_what_could_not_be_scored_is_in_no_pair():
    scored = [sample("RR", 1.0), sample("U", math.nan)]
    assert preference_pairs(scored, per_prompt=10, rng=random.Random(0)) == []


def test_what_was_cut_off_is_in_no_pair():
    scored = [sample("RR", 1.0, finished=False), sample("U", 0.0), sample("D", 0.0, finished=False)]
    assert preference_pairs(scored, per_prompt=10, rng=random.Random(0)) == []


def test_equal_completions_are_compared_once():
    scored = [sample("RR", 1.0), sample("RR", 1.0), sample("U", 0.0), sample("U", 0.0)]
    assert len(preference_pairs(scored, per_prompt=10, rng=random.Random(0))) == 1


def test_corruptions_keep_the_end_token_and_differ_from_every_good_sample():
    scored = [sample("RR", 1.0), sample("RRLR", 0.75), sample("UUDDRR", 0.25)]
    good = {s.rollout.ids for s in scored}
    made = corruptions(scored, count=200, vocabulary=sorted(TEXT), rng=random.Random(0))
    assert len(made) == 200
    assert all(broken[-1] == END and broken.count(END) == 1 and broken not in good for _, broken in made)


def test_failed_and_cut_off_samples_are_not_corrupted():
    scored = [sample("URU", 0.0), sample("RRLR", 0.75, finished=False)]
    assert corruptions(scored, count=10, vocabulary=sorted(TEXT), rng=random.Random(0)) == []


def test_a_corruption_that_is_another_right_answer_is_no_negative(ctx):
    origin = sample("RRLR", 0.75).rollout
    shorter = (*(MOVES[m] for m in "RR"), END)  # cut off into the shortest path of all
    missed = (*(MOVES[m] for m in "RRL"), END)
    assert worse(ctx, [(origin, shorter), (origin, missed)]) == [((5, 0), origin.ids, missed)]


def test_pairs_beyond_max_length_are_counted_and_none_left_is_a_mistake_of_one_line():
    short, long = ((5,), (1, 2), (3, 2)), ((5,), (1, 2), (3, 4, 5, 2))
    assert fitting([short, long], 4, where="x.yaml: reward_model") == [short]
    assert fitting([short, long], None, where="x.yaml: reward_model") == [short, long]
    with pytest.raises(
        ConfigError, match=r"x\.yaml: reward_model\.trainer\.max_length: all 2 .* shortest has 3, the longest 5"
    ):
        fitting([short, long], 2, where="x.yaml: reward_model")


def test_the_limit_is_trls_own_where_the_yaml_names_none():
    from trl import RewardConfig

    assert max_length({}, RewardConfig) == RewardConfig(bf16=False, use_cpu=True).max_length == 1024
    assert max_length({"max_length": None}, RewardConfig) is None


def test_without_corruptions_there_are_no_such_pairs(ctx):
    ctx.tokenizer = None  # not even asked: a real one makes one text of no rows
    assert worse(ctx, []) == []


def test_every_corrupted_pair_is_one_the_verifier_agrees_with(ctx):
    scored = [sample("RR", 1.0), sample("URDR", 0.75)]
    pairs = worse(ctx, corruptions(scored, count=100, vocabulary=sorted(TEXT), rng=random.Random(1)))
    assert len(pairs) > 50
    for _, chosen, rejected in pairs:
        texts = Tokenizer().batch_decode([chosen, rejected], True)
        better, lower = ctx.scorer([""] * 2, texts, [[]] * 2, start=["a1"] * 2, goal=["c1"] * 2)
        assert better > lower
