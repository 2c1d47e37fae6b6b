"""dpo and kto: what becomes a row, that the reference is the start, and that the policy prefers what earned more."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from pipeline.records import Prompt, Rollout, Scored
from pipeline.stages.kto import labelled, with_mismatched
from tests.small_chain import command, manifest, write_rows


def scored(completion: int, reward: float, *, status: Any = "pass", finished: bool = True) -> Scored:
    rollout = Rollout(Prompt(0, "p", (7, 8)), 0, (completion, 2), (0.0, 0.0), "t", finished)
    return Scored(rollout, reward, status, {"r": reward})


def test_kto_labels_each_distinct_answer_once_and_leaves_out_what_has_no_end_or_no_score():
    samples = [scored(4, 1.0), scored(4, 1.0), scored(5, 0.5), scored(6, 0.0, status="fail"),
               scored(9, 1.0, finished=False), scored(10, math.nan, status="error")]  # fmt: skip
    assert labelled(samples, None) == [((7, 8), (4, 2), True), ((7, 8), (5, 2), True), ((7, 8), (6, 2), False)]
    assert [good for _, _, good in labelled(samples, 1.0)] == [True, False, False]


def test_kl_rows_take_the_completion_of_their_predecessor_in_the_batch():
    rows = [((1,), (i,), i % 2 == 0) for i in (10, 11, 12, 13, 14)]
    pairs = [(row["completion_ids"], row["KL_completion_ids"]) for row in with_mismatched(rows, 2)]
    # rotated by one within each batch of two, as the KTO paper's estimate asks; the fifth row has no partner
    assert pairs == [([10], [11]), ([11], [10]), ([12], [13]), ([13], [12])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    assert command(place, "run", "stages=[base,sft]") == 0
    return place


FEW = ["{0}.prompts=128", "{0}.samples=8", "{0}.trainer.num_train_epochs=1", "{0}.trainer.learning_rate=3e-4",
       "{0}.trainer.per_device_train_batch_size=32", "{0}.trainer.logging_steps=1",
       "{0}.trainer.lr_scheduler_type=constant"]  # fmt: skip


def settings(kind: str, *more: str) -> list[str]:
    return [f"{kind}={{policy: sft}}", *(text.replace("{0}", kind) for text in (*FEW, *more))]


def log(runs, stage):
    return [json.loads(line) for line in (runs / "small" / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.stages
def test_dpo_starts_at_its_reference_where_the_loss_is_log_2(runs):
    assert command(runs, "dpo", *settings("dpo", "dpo.trainer.max_steps=1")) == 0
    [first] = [line for line in log(runs, "dpo") if "loss" in line]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)  # -log sigmoid(0): policy and reference are equal
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


@pytest.mark.stages
def test_two_rounds_of_dpo_that_also_imitate_the_chosen_answers_earn_more_than_their_start(runs):
    more = [
        "dpo.rounds=2",
        "dpo.prompts=256",
        "dpo.trainer.loss_type=[sigmoid,sft]",
        "dpo.trainer.loss_weights=[1.0,1.0]",
    ]
    assert command(runs, "dpo", *settings("dpo", *more)) == 0
    figures, start = manifest(runs, "dpo")["metrics"], manifest(runs, "sft")["metrics"]
    assert len(figures["rounds"]) == 2 and figures["heldout_kl"] > 0
    assert figures["heldout_reward"] > start["heldout_reward"]


@pytest.mark.stages
def test_keep_best_leaves_the_model_of_the_round_that_is_best_on_validation_prompts(runs, capsys):
    """The second round unlearns: its learning rate is that of the first, from a model that is already far away."""
    more = ["dpo.rounds=2", "dpo.keep=best", "dpo.trainer.max_steps=3", "dpo.trainer.learning_rate=3e-3"]
    assert command(runs, "dpo", *settings("dpo"), *more, "prompts.validation=0.1") == 0
    figures = manifest(runs, "dpo")["metrics"]
    scores = [each["validation_accuracy"] for each in figures["rounds"]]
    best = scores.index(max(scores))
    assert figures["best_round"] == best + 1 and figures["chosen_by"] == "validation_accuracy"
    assert figures["heldout_reward"] == figures["rounds"][best]["heldout_reward"]
    assert f"the model of round {best + 1} is kept" in capsys.readouterr().out
    assert (runs / "small/dpo/model/model.safetensors").is_file()
    assert not list((runs / "small/dpo").glob(".model*"))


@pytest.mark.stages
def test_kto_widens_the_margin_between_good_and_bad_answers_and_weighs_the_rarer_label(runs, capsys):
    assert command(runs, "kto", *settings("kto", "kto.at_least=1.0")) == 0
    assert "desirable_weight" in capsys.readouterr().out
    lines = [line for line in log(runs, "kto") if "rewards/margins" in line]
    assert lines[-1]["rewards/margins"] > max(lines[0]["rewards/margins"], 0)


@pytest.mark.stages
def test_preferences_of_files_are_read_and_their_mistakes_named(runs, tmp_path, capsys):
    pairs = [
        {"prompt": "a1:", "chosen": "R", "rejected": "RRL"},
        {"prompt": "b1:", "chosen": "L", "rejected": "U"},
    ]
    path = write_rows(tmp_path / "pairs.jsonl", pairs * 4)
    assert command(runs, "dpo", *settings("dpo", f"dpo.data={{path: {path}, heldout: 0.0}}"), "run=small") == 0
    assert manifest(runs, "dpo")["metrics"]["rows"] == 8
    path = write_rows(tmp_path / "labels.jsonl", [{"prompt": "a1:", "completion": "R", "label": "yes"}] * 4)
    capsys.readouterr()
    assert command(runs, "kto", *settings("kto", f"kto.data={{path: {path}, heldout: 0.0}}")) == 2
    assert "label must be true or false, found 'yes'" in capsys.readouterr().err


@pytest.mark.stages
def test_kto_of_one_row_per_batch_is_refused_in_one_line(runs, capsys):
    assert command(runs, "kto", *settings("kto", "kto.trainer.per_device_train_batch_size=1")) == 2
    assert "at least 2 rows per batch" in capsys.readouterr().err
