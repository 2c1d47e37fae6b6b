"""One step off-policy: samples drawn while the update before them runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loop_kit import metrics, run_stage, weights

from pipeline.generation import engines
from pipeline.update import loop

pytestmark = [pytest.mark.stages, pytest.mark.usefixtures("no_engine_left_behind")]
OVERLAP = ["grpo.overlap=true", "grpo.loss.importance=truncate", "grpo.alarms.mismatch_mean_abs=10"]


def drawn(root: Path) -> list[list[list[int]]]:
    """Sampled ids by step."""
    rows = [json.loads(line) for line in (root / "t" / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    return [[row["ids"] for row in rows if row["step"] == step] for step in range(max(r["step"] for r in rows) + 1)]


def test_samples_are_those_of_the_weights_before_the_last_update(tmp_path, model):
    """Held against a run that hardly moves: what it draws in its second step, the first weights draw."""
    steps = "grpo.steps=3"
    assert run_stage(tmp_path / "ahead", model, "grpo", *OVERLAP, steps) == 0
    assert run_stage(tmp_path / "plain", model, "grpo", steps) == 0
    assert run_stage(tmp_path / "still", model, "grpo", steps, "grpo.optimizer.learning_rate=1e-12") == 0
    ahead, plain, still = (drawn(tmp_path / name) for name in ("ahead", "plain", "still"))
    assert ahead[0] == plain[0] == still[0]
    assert ahead[1] == still[1] != plain[1], "the second step's samples come from the weights of the start"
    assert ahead[2] != still[2], "the third step's from the weights after one update"
    figures = metrics(tmp_path / "ahead", "grpo")
    assert [m["policy_lag"] for m in figures] == [0, 1, 1]
    assert figures[0]["mismatch_mean_abs"] < 1e-4 < figures[1]["mismatch_mean_abs"], "staleness shows as mismatch"
    assert max(m["canary_max_abs"] for m in figures) < 1e-4


@pytest.mark.parametrize("killed_at", [2, 3])
def test_a_killed_overlapped_run_resumes_to_the_same_bytes(tmp_path, model, monkeypatch, killed_at):
    """Killed with samples for the next step under way: before a checkpoint and right after one."""
    given = [*OVERLAP, "grpo.steps=5", "grpo.checkpoint_every=3", "grpo.optimizer.schedule=cosine"]
    assert run_stage(tmp_path / "whole", model, "grpo", *given) == 0
    update = loop.update_policy

    def killed(deps, state, batch):
        if state.step == killed_at:
            raise KeyboardInterrupt
        return update(deps, state, batch)

    monkeypatch.setattr(loop, "update_policy", killed)
    assert run_stage(tmp_path / "killed", model, "grpo", *given) == 130
    monkeypatch.setattr(loop, "update_policy", update)
    engines.close_generators()
    assert run_stage(tmp_path / "killed", model, "grpo", *given) == 0
    for file in ("metrics.jsonl", "rollouts.jsonl", "difficulty.jsonl", "model/model.safetensors"):
        whole, again = ((tmp_path / root / "t" / "grpo" / file).read_bytes() for root in ("whole", "killed"))
        assert whole == again, file
    counted = [json.loads((tmp_path / root / "t" / "grpo" / "manifest.json").read_text())["tokens"]
               for root in ("whole", "killed")]  # fmt: skip
    assert counted[0] == counted[1]
    assert counted[0]["completion"] == sum(m["tokens"] for m in metrics(tmp_path / "whole", "grpo"))


def test_overlap_still_learns(tmp_path, model):
    words = [*OVERLAP, "grpo.steps=25", "grpo.prompts=8", "grpo.samples=8"]
    assert run_stage(tmp_path, model, "grpo", *words) == 0
    rewards = [m["reward_mean"] for m in metrics(tmp_path, "grpo")]
    assert sum(rewards[:3]) / 3 < 0.15 and sum(rewards[-3:]) / 3 > 0.5


def test_a_token_budget_draws_no_batch_that_is_not_trained_on(tmp_path, model):
    assert run_stage(tmp_path, model, "grpo", *OVERLAP, "grpo.steps=50", "grpo.token_budget=200") == 0
    steps = metrics(tmp_path, "grpo")
    trained = [sum(m["tokens"] for m in steps[: i + 1]) for i in range(len(steps))]
    assert len(steps) < 50 and trained[-1] >= 200 > trained[-2]
    done = json.loads((tmp_path / "t" / "grpo" / "manifest.json").read_text())
    assert done["tokens"]["completion"] == trained[-1]
    assert len((tmp_path / "t" / "grpo" / "difficulty.jsonl").read_text().splitlines()) == 4 * len(steps)
    assert done["metrics"]["mismatch_mean_abs"] == max(m["mismatch_mean_abs"] for m in steps), "the worst step"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["grpo.overlap=true"], "give loss.importance: truncate"),
        ([*OVERLAP, "grpo.groups.dynamic=true"], "one batch a step is drawn ahead"),
    ],
)
def test_what_overlap_cannot_go_with_is_reported_before_anything_runs(tmp_path, model, capsys, words, told):
    assert run_stage(tmp_path, model, "grpo", *words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.long
def test_two_processes_draw_ahead_as_one_does(tmp_path, model):
    """The drawing threads of the ranks talk beside their main threads."""
    from test_loop_runs import launch

    given = [*OVERLAP, "grpo.steps=4", "grpo.minibatches=2"]
    assert run_stage(tmp_path / "one", model, "grpo", *given) == 0
    done = launch(2, tmp_path / "two", model, "grpo", *given)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert drawn(tmp_path / "one") == drawn(tmp_path / "two")
    left, right = weights(tmp_path / "one", "grpo"), weights(tmp_path / "two", "grpo")
    assert max(float((left[n] - right[n]).abs().max()) for n in left) < 1e-5
