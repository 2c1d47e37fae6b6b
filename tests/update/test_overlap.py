"""Off-policy by one step and more: samples drawn while the updates before them run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loop_kit import metrics, run_stage, weights

from pipeline.generation import engines
from pipeline.stages.rollout_source import SampledRollouts
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
        ([*OVERLAP, "grpo.groups.dynamic=true"], "one batch per step is sampled ahead"),
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


# --- more than one step -----------------------------------------------------------------------------------------------


def lagged(lag: int, *more: str) -> list[str]:
    return [
        f"grpo.overlap={{max_lag: {lag}}}",
        "grpo.loss.importance=truncate",
        "grpo.alarms.mismatch_mean_abs=10",
        *more,
    ]


def versions(root: Path) -> list[set[int]]:
    """Versions of the policy that sampled the rows of each step, as the rows say."""
    rows = [json.loads(line) for line in (root / "t" / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    return [
        {row["policy_version"] for row in rows if row["step"] == s} for s in range(max(r["step"] for r in rows) + 1)
    ]


def test_step_t_trains_on_what_the_policy_after_t_minus_k_updates_samples(tmp_path, model):
    """Held against a run without lag that is killed by its last step after j updates: what it would sample next."""
    assert run_stage(tmp_path / "lag", model, "grpo", *lagged(2, "grpo.steps=5")) == 0
    assert versions(tmp_path / "lag") == [{0}, {0}, {0}, {1}, {2}]
    figures = metrics(tmp_path / "lag", "grpo")
    assert [m["policy_lag"] for m in figures] == [0, 1, 2, 2, 2]
    assert [m["policy_version"] for m in figures] == [0, 0, 0, 1, 2]
    assert "importance_over_cap" not in figures[0] and 0 <= figures[-1]["importance_over_cap"] <= 1
    still = ["grpo.steps=3", "grpo.optimizer.learning_rate=1e-12"]
    assert run_stage(tmp_path / "still", model, "grpo", *still) == 0
    first, unmoved = drawn(tmp_path / "lag"), drawn(tmp_path / "still")
    assert first[:3] == unmoved, "three steps sample from the weights of the start, with the seeds of their own steps"
    gaps = [m["mismatch_mean_abs"] for m in figures]
    assert gaps[0] < 1e-4 < gaps[1] < gaps[2], "the older the policy that sampled, the larger the mismatch"
    assert max(m["canary_max_abs"] for m in figures) < 1e-4


def test_one_step_of_lag_is_the_boolean_form(tmp_path, model):
    """To the byte, but for the version, which the new form records."""
    assert run_stage(tmp_path / "true", model, "grpo", *OVERLAP, "grpo.steps=3") == 0
    assert run_stage(tmp_path / "one", model, "grpo", *lagged(1, "grpo.steps=3")) == 0
    rows, weights_of_one = drawn(tmp_path / "one"), weights(tmp_path / "one", "grpo")
    assert rows == drawn(tmp_path / "true")
    assert all(bool((weights_of_one[n] == w).all()) for n, w in weights(tmp_path / "true", "grpo").items())
    new = {"policy_version", "importance_over_cap"}
    for one, true in zip(metrics(tmp_path / "one", "grpo"), metrics(tmp_path / "true", "grpo"), strict=True):
        assert {k: v for k, v in one.items() if k not in new} == true


@pytest.mark.parametrize(("killed_at", "in_keep"), [(0, False), (0, True), (3, False), (4, True)])
def test_a_killed_lagged_run_resumes_to_the_same_bytes(tmp_path, model, monkeypatch, killed_at, in_keep):
    """Killed in an update with a full queue, or between two batches that are written to disk; prompts by difficulty,
    so that what is queued depends on what was logged when it was sampled."""
    given = lagged(3, "grpo.steps=7", "grpo.checkpoint_every=2", "grpo.sampler.kind=difficulty")
    assert run_stage(tmp_path / "full", model, "grpo", *given) == 0
    update, keep = loop.update_policy, SampledRollouts.keep

    def update_killed(deps, state, batch):
        if state.step == killed_at and not in_keep:
            raise KeyboardInterrupt
        return update(deps, state, batch)

    def keep_killed(self, prompts, scored, step):
        if step == killed_at + 2 and in_keep:
            raise KeyboardInterrupt
        return keep(self, prompts, scored, step)

    monkeypatch.setattr(loop, "update_policy", update_killed)
    monkeypatch.setattr(SampledRollouts, "keep", keep_killed)
    assert run_stage(tmp_path / "killed", model, "grpo", *given) == 130
    monkeypatch.undo()
    engines.close_generators()
    assert run_stage(tmp_path / "killed", model, "grpo", *given) == 0
    for file in ("metrics.jsonl", "rollouts.jsonl", "difficulty.jsonl", "model/model.safetensors"):
        once, again = ((tmp_path / root / "t" / "grpo" / file).read_bytes() for root in ("full", "killed"))
        assert once == again, file
    counted = [json.loads((tmp_path / root / "t" / "grpo" / "manifest.json").read_text())["tokens"]
               for root in ("full", "killed")]  # fmt: skip
    assert counted[0] == counted[1]


@pytest.mark.parametrize("budget", [30, 300])
def test_a_budget_ends_sampling_and_what_is_queued_is_still_trained_on(tmp_path, model, budget):
    """A budget that the first batches exceed, and one that ends in the middle."""
    assert run_stage(tmp_path, model, "grpo", *lagged(4, "grpo.steps=50", f"grpo.token_budget={budget}")) == 0
    steps = metrics(tmp_path, "grpo")
    tokens = [m["tokens"] for m in steps]
    done = json.loads((tmp_path / "t" / "grpo" / "manifest.json").read_text())
    assert done["tokens"]["completion"] == sum(tokens), "all that was sampled is trained on, and nothing else"
    assert sum(tokens) >= budget > sum(tokens[:-1]), "the last batch that was sampled is the one that spent the budget"


def test_damaged_samples_of_earlier_weights_are_not_replaced_by_later_ones(tmp_path, model, monkeypatch, capsys):
    given = lagged(2, "grpo.steps=6", "grpo.checkpoint_every=2")
    update = loop.update_policy

    def killed(deps, state, batch):
        if state.step == 2:
            raise KeyboardInterrupt
        return update(deps, state, batch)

    monkeypatch.setattr(loop, "update_policy", killed)
    assert run_stage(tmp_path, model, "grpo", *given) == 130
    monkeypatch.undo()
    engines.close_generators()
    with (tmp_path / "t/grpo/checkpoints/done-step-3-0/scored.jsonl").open("a") as file:
        file.write("{}\n")
    assert run_stage(tmp_path, model, "grpo", *given) == 2
    assert "done-step-3-0: damaged, and the weights that sampled it are gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["grpo.overlap={max_lag: 3}"], "samples are 3 updates old, and nothing corrects for it"),
        (lagged(9), "grpo.overlap.max_lag"),
        (["grpo.overlap={max_lg: 3}", "grpo.loss.importance=truncate"], "did you mean 'max_lag'"),
        (["grpo.overlap=4"], "grpo.overlap: expected true, false or a block of keys, found 4"),
    ],
)
def test_a_lag_that_makes_no_sense_is_reported_in_one_line(tmp_path, model, capsys, words, reported):
    assert run_stage(tmp_path, model, "grpo", *words) == 2
    assert reported in (err := capsys.readouterr().err) and len(err.strip().splitlines()) == 1, err
