"""A surrogate reward: unbiased by arithmetic and by draws, its classifier, its share, and its state."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

import rewards
from rewards.batch import Batch
from rewards.ngram_classifier import NgramClassifier, calibration_error, features
from rewards.surrogate import SurrogatePart, corrected, needed_share
from verifiers import gridworld

SETTINGS = {"kind": "surrogate", "of": "gridworld"}


def batch(n: int, *, draws: list[float] | None, seed: int = 1) -> Batch:
    """Answers to gridworld, about a third of them right, as token ids of their bytes."""
    rng, rows = random.Random(seed), list(gridworld.generate(n, seed))
    texts = ["".join(rng.choice("RLUD") if rng.random() < 0.25 else c for c in row["completion"]) for row in rows]
    prompts = [row["prompt"] for row in rows]
    ids = [[ord(c) for c in p] for p in prompts], [[*map(ord, t), 0] for t in texts]
    return Batch(prompts, ids[0], texts, ids[1], [True] * n, [row["task"] for row in rows], draws)


def build(**fields: object) -> tuple[rewards.Composite, SurrogatePart]:
    composite = rewards.build({"slow": {**SETTINGS, **fields}})
    return composite, composite.surrogates[0]


def learned(part: SurrogatePart, composite: rewards.Composite, n: int) -> None:
    for start in range(0, n, 64):
        some = batch(64, draws=[0.0] * 64, seed=100 + start)
        scores = composite.score(some)
        part.observe([(p, c, s.parts) for p, c, s in zip(some.prompt_ids, some.completion_ids, scores, strict=True)])


def test_the_corrected_score_by_hand():
    assert corrected(0.3, 1.0, 0.25) == pytest.approx(0.3 + 4 * 0.7)
    assert corrected(0.3, 0.0, 0.25) == pytest.approx(-0.9)
    assert corrected(0.3, None, 0.25) == 0.3
    assert 0.25 * corrected(0.3, 1.0, 0.25) + 0.75 * corrected(0.3, None, 0.25) == pytest.approx(1.0), "its mean"


def test_the_share_that_adds_a_given_variance_by_hand():
    # (1/q - 1) 0.1 = 0.5 * 0.2 gives q = 1/2
    assert needed_share(0.1, 0.2, added=0.5) == pytest.approx(0.5)
    assert needed_share(0.0, 0.2, added=0.5) == 0.0
    assert needed_share(0.2, 0.2, added=1.0) == pytest.approx(0.5), "a stand-in that knows nothing"
    assert needed_share(0.0, 0.0, added=1.0) == 1.0


@pytest.mark.parametrize("trained", [0, 512])
def test_the_mean_over_draws_is_the_real_score(trained: int):
    composite, part = build(verify_share=0.25)
    learned(part, composite, trained)
    some = batch(24, draws=None)
    real = [s.reward for s in composite.score(some)]
    rng, repeats = random.Random(5), 150
    sums, squares = [0.0] * 24, [0.0] * 24
    for _ in range(repeats):
        drawn = replace(some, draws=[rng.random() for _ in range(24)])
        for i, score in enumerate(composite.score(drawn)):
            sums[i] += score.reward
            squares[i] += score.reward**2
    for total, square, truth in zip(sums, squares, real, strict=True):
        mean = total / repeats
        error = math.sqrt(max(square / repeats - mean**2, 1e-12) / repeats)
        assert abs(mean - truth) < 5 * error + 1e-9
    assert 0.1 < sum(real) / 24 < 0.9, "the test would see a constant"


def test_without_draws_every_row_is_really_checked():
    composite, _ = build(verify_share=0.05)
    some = batch(40, draws=None)
    plain = rewards.build({"gridworld": {}}).score(some)
    assert [(s.reward, s.status) for s in composite.score(some)] == [(s.reward, s.status) for s in plain]


def test_an_unchecked_row_has_a_score_but_nobody_knows_whether_it_is_right():
    composite, part = build(verify_share=0.5)
    scores = composite.score(batch(2, draws=[0.0, 0.5]))
    checked = [("slow/real" in s.parts) for s in scores]
    assert sorted(checked) == [False, True], "draws half a circle apart, and a share of a half"
    unchecked = scores[checked.index(False)]
    assert unchecked.status == "error" and unchecked.reward == unchecked.parts["slow/predicted"] == 0.5
    assert part.rows_skipped == 1 and part.rows_timed == 1


def test_only_the_share_is_really_checked():
    composite, part = build(verify_share=0.25)
    scores = composite.score(batch(400, draws=[i / 400 for i in range(400)]))
    assert sum("slow/real" in s.parts for s in scores) == part.rows_timed == 100
    assert part.rows_skipped == 300 and part.seconds > 0
    assert part.seconds_saved == pytest.approx(3 * part.seconds)


def test_a_broken_check_leaves_the_row_without_a_score():
    composite = rewards.build(
        {"slow": {"kind": "surrogate", "of": "mine", "verify_share": 1.0,
                  "settings": {"kind": "function", "path": "test_surrogate:failing"}}},
        reward_dirs=["tests/rewards"],
    )  # fmt: skip
    (score,) = composite.score(batch(1, draws=[0.5]))
    assert math.isnan(score.reward) and score.status == "error"


def failing(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    raise RuntimeError("the disk is full")


def test_the_control_without_correction_scores_by_the_stand_in_alone():
    composite, _ = build(verify_share=1.0, correct=False)
    scores = composite.score(batch(30, draws=[0.5] * 30))
    assert {s.reward for s in scores} == {0.5} and all("slow/real" in s.parts for s in scores)


def test_after_learn_rows_nothing_is_checked_any_more():
    composite, part = build(verify_share=1.0, correct=False, learn_rows=64)
    learned(part, composite, 64)
    assert part.share == 0.0
    scores = composite.score(batch(20, draws=[0.0] * 20))
    assert not any("slow/real" in s.parts for s in scores)


# --- the classifier -------------------------------------------------------------------------------------------------


def test_the_classifier_explains_part_of_the_score_of_new_samples_and_is_calibrated():
    composite, part = build(verify_share=1.0)
    learned(part, composite, 1536)
    some = batch(400, draws=[0.0] * 400, seed=9)
    scores = composite.score(some)
    predicted = [float(s.parts["slow/predicted"] or 0) for s in scores]
    real = [float(s.parts["slow/real"] or 0) for s in scores]
    mean = sum(real) / 400
    error = sum((p - r) ** 2 for p, r in zip(predicted, real, strict=True)) / 400
    assert error < 0.75 * sum((r - mean) ** 2 for r in real) / 400
    assert calibration_error(predicted, real) < 0.1


def test_calibration_error_by_hand():
    # two bins: predictions 0.1, 0.1 with scores 0, 1; predictions 0.9 with score 1
    assert calibration_error([0.1, 0.1, 0.9], [0.0, 1.0, 1.0]) == pytest.approx((0.8 + 0.1) / 3)
    assert math.isnan(calibration_error([], []))


def test_held_out_samples_are_not_learned_from():
    classifier = NgramClassifier()
    rows = [features([1, 2], [i, i + 1, 0]) for i in range(25)]
    classifier.learn(rows, [float(i % 2) for i in range(25)])
    assert len(classifier.held_out) == 5 and len(classifier.learned) == 20
    kept = {tuple(row.tolist()) for row, _ in classifier.held_out}
    assert not kept & {tuple(row.tolist()) for row, _ in classifier.learned}


def test_scores_beyond_0_to_1_widen_the_scale():
    classifier = NgramClassifier()
    rows = [features([1], [i % 2, 0]) for i in range(200)]
    classifier.learn(rows, [-2.0 if i % 2 else 3.0 for i in range(200)])
    low, high = classifier.predict([features([1], [1, 0]), features([1], [0, 0])])
    assert -2.0 <= low < -1.0 and 2.0 < high <= 3.0


# --- share and state ------------------------------------------------------------------------------------------------


def test_the_share_follows_the_error_of_the_stand_in():
    composite, part = build(verify_share=1.0, added_variance=0.5, min_share=0.1)
    assert part.share == 1.0
    learned(part, composite, 64)
    early = part.share
    learned(part, composite, 1024)
    assert 0.1 <= part.share < early
    assert part.error is not None and part.variance is not None
    assert part.share == pytest.approx(part.error / (part.error + 0.5 * part.variance))


def test_a_saved_state_goes_on_to_the_byte():
    composite, part = build(verify_share=0.5, added_variance=0.5)
    learned(part, composite, 256)
    saved = json.loads(json.dumps(part.state()))
    other_composite, other = build(verify_share=0.5, added_variance=0.5)
    other.load_state(saved)
    learned(part, composite, 128)
    learned(other, other_composite, 128)
    assert json.dumps(part.state()) == json.dumps(other.state())
    some = batch(50, draws=[i / 50 for i in range(50)])
    assert [s.reward for s in composite.score(some)] == [s.reward for s in other_composite.score(some)]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"verify_share": 0.0}, "verify_share"),
        ({"verify_share": 1.5}, "verify_share"),
        ({"min_share": 0.0}, "min_share"),
        ({"added_variance": 0.0}, "added_variance"),
        ({"learn_rows": 10}, "correct: false"),
        ({"learn_rows": 0, "correct": False}, "at least 1"),
        ({"of": "gridwolrd"}, "did you mean 'gridworld'"),
        ({"of": "reward_model"}, "reward model"),
        ({"verify_shares": 0.5}, "did you mean 'verify_share'"),
    ],
)
def test_mistakes_in_the_part_are_named(fields: dict[str, object], words: str):
    with pytest.raises(ValueError, match=r"rewards\..*") as caught:
        build(**fields)
    assert words in str(caught.value)


def test_the_columns_that_the_real_part_needs_are_known():
    block = {"slow": SETTINGS}
    assert rewards.fields_needed(block, []) == rewards.fields_needed({"gridworld": {}}, [])
