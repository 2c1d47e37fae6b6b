"""What stages cost to reach an accuracy: figures worked out by hand, and files as stages leave them."""

import json
from pathlib import Path

import pytest

from pipeline.__main__ import main as cli
from pipeline.research.learning_curves import (
    Curve,
    EvaluationPass,
    completions_at,
    first_reaching,
    lines_of,
    main,
    passes_of,
    read_run,
    replacement,
    solutions_by_policy,
)

PASSES = [EvaluationPass(100, 500, 0.3, 0.2), EvaluationPass(200, 900, 0.5, 0.4), EvaluationPass(300, 1300, 0.4, 0.9)]


def curve(stage, seed="seed-1", accuracy=0.4, passes=(), solutions=None):
    return Curve(stage, seed, accuracy, 1300, 5.0, list(passes), solutions or {})


def test_completions_at_an_accuracy_lie_on_the_line_between_two_passes():
    assert completions_at(PASSES, 0.4, start=0.1) == pytest.approx(150)
    assert completions_at(PASSES, 0.2, start=0.1) == pytest.approx(50)
    assert completions_at(PASSES, 0.1, start=0.1) == 0
    assert completions_at(PASSES, 0.6, start=0.1) is None


def test_the_first_pass_at_the_target_counts_though_later_ones_fall():
    assert first_reaching(PASSES, 0.5) == PASSES[1] and first_reaching(PASSES, 0.51) is None


def test_a_stage_that_ends_below_its_best_while_its_own_reward_rises_shows_both():
    (line,) = lines_of([curve("progress", passes=PASSES)], 0.5)
    assert line["fall"] == pytest.approx(0.1) and line["own_reward_rise"] == pytest.approx(0.7)
    assert line["tokens_to_target"] == 900 and line["reached"] == 1


def test_solutions_of_all_seeds_are_a_union_and_of_one_seed_a_mean():
    curves = [curve("a", "seed-1", solutions={"p": {"RU", "UR"}, "q": set()}),
              curve("a", "seed-2", solutions={"p": {"RU"}, "q": {"L"}})]  # fmt: skip
    (line,) = lines_of(curves, 0.5)
    assert line["solutions_one_seed"] == pytest.approx((1.0 + 1.0) / 2)
    assert line["solutions_all_seeds"] == pytest.approx((2 + 1) / 2)


def test_completions_per_demonstration_at_equal_accuracy():
    curves = [curve("model", accuracy=0.1), curve("shown_10", accuracy=0.4), curve("shown_80", accuracy=0.9),
              curve("reinforce", passes=PASSES)]  # fmt: skip
    first, second = replacement(curves)
    assert (first["demonstrations"], first["reinforce"]) == (10, pytest.approx(15.0))
    assert second["reinforce"] is None and second["reinforce_reached"] == 0


def test_passes_and_solutions_are_read_from_the_files_of_stages(tmp_path):
    rows = [{"step": 1, "tokens": 40, "reward_mean": 0.1}, {"step": 2, "tokens": 60, "reward_mean": 0.3,
             "heldout_accuracy": 0.25, "batches_sampled": 2}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert passes_of(tmp_path / "metrics.jsonl", {"prompts": 4, "samples": 8}) == [EvaluationPass(96, 100, 0.25, 0.3)]
    assert passes_of(tmp_path / "absent.jsonl", {}) == []
    samples = [("p", "RU", "pass"), ("p", "RU ", "pass"), ("p", "UR", "fail")]
    (tmp_path / "rollouts.jsonl").write_text(
        "".join(json.dumps({"policy": "a", "prompt": p, "completion": c, "status": s}) + "\n" for p, c, s in samples)
    )
    assert solutions_by_policy(tmp_path / "rollouts.jsonl") == {"a": {"p": {"RU"}}}


@pytest.mark.stages
def test_the_curve_of_a_real_run_counts_its_prompts_times_its_samples(tmp_path, capsys):
    config = str(Path(__file__).parents[2] / "configs" / "research" / "surrogate.yaml")
    given = [config, f"runs_dir={tmp_path}", "run=small", "prompts.rows=200", "evaluation.prompts=8",
             "stages=[base, full, evaluate]", "evaluate={policies: [base, full]}", "full.steps=2",
             "full.evaluate_every=1", "full.prompts=3", "full.samples=2"]  # fmt: skip
    assert cli(["run", *given]) == 0, capsys.readouterr().err
    assert main([str(tmp_path / "small")]) == 0
    assert [one.completions for one in passes_of_stage(tmp_path / "small", "full")] == [6, 12]


def passes_of_stage(run, stage):
    return next(curve.passes for curve in read_run(run) if curve.stage == stage)


@pytest.mark.parametrize("words", [[], ["nowhere"], [".", "target=much"], [".", "targets=1"]])
def test_bad_words_give_one_line_and_exit_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_directory_without_finished_stages_is_reported(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no finished policy stage" in capsys.readouterr().err
