"""Accuracy has one definition: every figure of it leaves out the samples on which a checker broke."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import loop_kit
import pytest

import rewards
from pipeline.__main__ import main
from pipeline.records import Prompt, Rollout, Scored, as_json
from pipeline.report.summary import accuracy_by_prompt
from pipeline.stages import feedme, heldout_episodes
from pipeline.stages.comparison.method_judge import best_of_curves, by_prompt
from pipeline.stages.context import Judged
from pipeline.stages.evaluate import main_figure, of_its_stage
from pipeline.stats import describe_groups, headline_names, pass_rate


def sample(number: int, reward: float, status: Any) -> Scored:
    rollout = Rollout(Prompt(0, "p", (1,)), number, (number + 3, 2), (-0.5, -0.5), str(number), True)
    return Scored(rollout, reward, status, {"r": reward})


# one right, one wrong; one without a reward; one whose reward is known and whose zero-weight checker broke
GROUP = [
    sample(0, 1.0, "pass"),
    sample(1, 0.0, "fail"),
    sample(2, math.nan, "error"),
    sample(3, 0.75, "error"),
]


def test_describe_groups_leaves_out_broken_checkers() -> None:
    figures = describe_groups([GROUP], k=1)
    assert figures["heldout_accuracy"] == figures["pass_at_1"] == pass_rate(GROUP) == 0.5
    assert (figures["heldout_samples"], figures["checker_broken"]) == (2, 2)


def test_the_comparison_leaves_out_broken_checkers() -> None:
    assert by_prompt(GROUP, ["p"])["accuracy_by_prompt"] == [0.5]
    assert best_of_curves(GROUP, proxy=False)["gold"][0]["accuracy_by_prompt"] == [0.5]


def test_the_report_leaves_out_broken_checkers() -> None:
    assert accuracy_by_prompt([as_json(s, policy="x") for s in GROUP]) == {"x": {"p": 0.5}}


def test_best_of_n_of_feedme_leaves_out_broken_checkers(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx: Any = SimpleNamespace(
        block=SimpleNamespace(samples=1), cfg=SimpleNamespace(evaluation=SimpleNamespace(samples=1))
    )
    own = [sample(s.rollout.sample, 0.5, "fail") for s in GROUP]  # the stage's own reward could score all four
    monkeypatch.setattr(feedme, "scorer", lambda ctx: None)
    monkeypatch.setattr(
        feedme, "score", lambda _, rollouts: [Scored(r, 0.5, "fail") for r, _ in zip(rollouts, own, strict=True)]
    )
    figures = feedme.without_training(ctx, Judged({}, GROUP))
    assert figures["best_of_n_accuracy"] == 0.5 and figures["best_of_n_reward"] == 0.5


def test_episodes_leave_out_broken_checkers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout_episodes, "play", lambda *a, **k: GROUP)
    monkeypatch.setattr(heldout_episodes, "load_environment", lambda *a, **k: None)
    ctx: Any = SimpleNamespace(
        name="grpo", heldout_prompts=[], tokenizer=None, stop_token_ids=frozenset(), context_tokens=lambda: 64,
        cfg=SimpleNamespace(path="x.yaml", verifier_dirs=(), seed=1, sampling=None,
                            evaluation=SimpleNamespace(samples=4)),
    )  # fmt: skip
    settings: Any = SimpleNamespace(environment="e", max_turns=1, memory="state")
    assert heldout_episodes.judge_episodes(ctx, None, settings)["heldout_episode_accuracy"] == 0.5  # type: ignore[arg-type]


def test_evaluate_names_a_stages_own_figure_without_a_label_as_it_samples_itself(tmp_path) -> None:
    metrics = {"heldout_accuracy": 0.65, "unconditioned_accuracy": 0.47}  # the first is under the best label
    for name, figures in {"conditioned": metrics, "grpo": {"heldout_accuracy": 0.6}}.items():
        (tmp_path / name).mkdir()
        manifest = {"metrics": figures, "tokens": {"completion": 5}, "wall_s": 2.0}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    ctx: Any = SimpleNamespace(cfg=SimpleNamespace(run_dir=tmp_path, blocks={"conditioned": 1, "grpo": 1}))
    assert of_its_stage(ctx, "conditioned")["stage_accuracy"] == 0.47
    assert of_its_stage(ctx, "grpo") == {"sampled_tokens": 5, "wall_s": 2.0, "stage_accuracy": 0.6}
    assert of_its_stage(ctx, "elsewhere") == {}


# --- rewards without a verifier: nothing says right or wrong ---------------------------------------------------


@pytest.mark.parametrize(
    ("block", "judges"),
    [
        ({"missing_eos": {}}, False),
        ({"length": {"max_tokens": 8, "buffer_tokens": 2}, "repetition": {"ngram": 2}}, False),
        ({"missing_eos": {}, "exact": {"weight": 0}}, True),
        ({"right": {"kind": "verifier", "verifier": "exact"}}, True),
        ({"slow": {"kind": "surrogate", "of": "exact"}}, True),
        ({"environment": {}}, True),
        ({"reward": {"kind": "environment"}}, True),
        ({"environment": {"kind": "missing_eos"}}, False),
        ({"sums": {"kind": "verifier", "verifier": "exact", "sources": ["a"]}}, True),
    ],
)
def test_only_a_verifier_or_grader_says_right_or_wrong(block: dict[str, Any], judges: bool) -> None:
    assert rewards.judges_answers(block, []) is rewards.build(block).judges is judges


def test_without_one_tables_show_the_mean_reward_and_policies_are_compared_by_it() -> None:
    figures = {"heldout_accuracy": 1.0, "pass_at_4": 1.0, "entropy": 0.5}
    rows = [{**figures, "policy": name, "heldout_reward": reward, "heldout_judged": False}
            for name, reward in (("base", -0.8), ("dpo", -0.2))]  # fmt: skip
    assert headline_names(rows) == ["heldout_reward", "entropy"]
    assert [main_figure(row) for row in rows] == [-0.8, -0.2]
    judged = {"heldout_accuracy": 0.25, "heldout_reward": 0.9}
    assert main_figure(judged) == 0.25 and main_figure({**judged, "heldout_accuracy": math.nan}) == -math.inf


def test_a_run_whose_rewards_judge_nothing_says_so_and_names_its_best_by_reward(tmp_path, capsys) -> None:
    model = loop_kit.tiny_model(tmp_path / "model")
    words = ["rewards={missing_eos: {}}", "grpo.steps=1", "stages=[grpo, evaluate]", "evaluate={}"]
    config = loop_kit.write_config(tmp_path, model)
    assert main(["run", str(config), f"runs_dir={tmp_path}", *words]) == 0
    figures = loop_kit.manifest(tmp_path, "evaluate")["metrics"]
    assert figures["heldout_judged"] is False and figures["best_policy"] == "grpo"
    assert "accuracy" not in capsys.readouterr().out
    page = (tmp_path / "t" / "report.html").read_text()
    assert "no part of the rewards says right or wrong" in page
