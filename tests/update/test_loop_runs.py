"""Whole policy stages through the command line: every option for a few steps, resume, several processes, trackers."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loop_kit import letters, manifest, metrics, run_stage, weights, write_config

from pipeline.__main__ import main
from pipeline.cli import watch_frame, watch_view
from pipeline.config.load import ConfigError
from pipeline.config.schema import Model
from pipeline.distributed import ranks
from pipeline.generation import engines
from pipeline.run import shutdown
from pipeline.update import loop

pytestmark = [pytest.mark.stages, pytest.mark.usefixtures("no_engine_left_behind")]
ROOT = Path(__file__).parents[2]


LORA = "grpo.peft={r: 4, target_modules: [q_proj, v_proj, down_proj], lora_alpha: 16}"
SURROGATE = (
    "{slow: {kind: surrogate, of: letters, added_variance: 0.5, verify_share: 0.5, "
    "settings: {kind: function, path: 'loop_kit:letters'}}}"
)
OPTIONS = {
    "monte carlo": ("grpo", ["grpo.credit.kind=monte_carlo", "grpo.credit.points=2", "grpo.credit.continuations=2"]),
    "ptx": ("grpo", ["grpo.loss.ptx_coef=0.5"]),
    "lora": ("grpo", [LORA, "grpo.kl.coef=0.05"]),
    "ema": ("grpo", ["grpo.kl.coef=0.05", "grpo.kl.reference=ema"]),
    "bf16": ("grpo", ["model.dtype=bfloat16", "grpo.kl.coef=0.05", "grpo.gradient_checkpointing=true"]),
    "bf16 ema": ("grpo", ["model.dtype=bfloat16", "grpo.kl.coef=0.05", "grpo.kl.reference=ema"]),
    "bf16 lora": ("grpo", ["model.dtype=bfloat16", LORA, "grpo.kl.coef=0.05"]),
    "gspo": ("grpo", ["grpo.loss.kind=gspo", "grpo.loss.aggregate=sequence_mean", "grpo.minibatches=2"]),
    "dapo": ("grpo", ["grpo.loss.clip_high=0.28", "grpo.groups={dynamic: true, overlong: mask, overlong_buffer: 2}"]),
    "state turns": ("grpo", ["grpo.episodes={environment: gridworld, max_turns: 3}", "grpo.alarms.no_signal_steps=9"]),
    "history turns": (
        "grpo",
        ["grpo.episodes={environment: gridworld, memory: history}", "grpo.alarms.no_signal_steps=9"],
    ),
    "own critic": ("ppo", []),
    "shared critic": ("ppo", ["ppo.critic.shared=true"]),
    "segments of ppo": (
        "ppo",
        ["ppo.credit={level: segment, segments: {by: tokens, tokens: 2}}", "ppo.critic.segment_tokens=first"],
    ),
    "segments of monte carlo": (
        "grpo",
        ["grpo.credit={kind: monte_carlo, points: 2, continuations: 2, level: segment, segments: {by: peaks}}"],
    ),
    "segments of a group": (
        "grpo",
        ["grpo.credit={level: segment, segments: {by: marker, marker: R}}"],
    ),
    "surrogate reward": ("grpo", [f"rewards={SURROGATE}"]),
    "turns of ppo": ("ppo", ["ppo.episodes={environment: gridworld, memory: history}", "ppo.credit.level=turn"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stage_trains_and_saves_a_plain_model_whatever_the_option(tmp_path, model, name, capsys):
    stage, overrides = OPTIONS[name]
    assert run_stage(tmp_path, model, stage, *overrides) == 0, capsys.readouterr().err
    from safetensors.torch import load_file

    start, end = load_file(model / "model.safetensors"), weights(tmp_path, stage)
    # detail 40: no critic, no adapter, nothing but the model's own names
    assert end.keys() == start.keys()
    assert {t.dtype for t in end.values()} == {torch.bfloat16 if name.startswith("bf16") else torch.float32}
    if "turns" not in name:  # an untrained walker earns nothing
        assert any(not torch.equal(end[n].float(), start[n].float()) for n in start)
    figures = manifest(tmp_path, stage)["metrics"]
    assert figures["canary_max_abs"] < (0.25 if name.startswith("bf16") else 1e-4)
    assert figures["steps"] == 2 and figures["mismatch_mean_abs"] < 0.1
    if name == "ptx":
        assert metrics(tmp_path, stage)[0]["ptx_loss"] > 0


def test_detail_40_the_saved_policy_of_a_shared_critic_holds_no_critic_keys(tmp_path, model):
    assert run_stage(tmp_path, model, "ppo", "ppo.critic.shared=true", "ppo.steps=1") == 0
    assert not [name for name in weights(tmp_path, "ppo") if "value" in name or "score" in name]


def test_a_few_steps_raise_a_reward_that_can_be_raised(tmp_path, model):
    """The control for everything above: the loop learns. `letters` pays for the letter R."""
    assert letters([""], ["RRUD"]) == [0.5]
    assert run_stage(tmp_path, model, "grpo", "grpo.steps=25", "grpo.prompts=8", "grpo.samples=8") == 0
    rewards = [m["reward_mean"] for m in metrics(tmp_path, "grpo")]
    assert sum(rewards[:3]) / 3 < 0.15 and sum(rewards[-3:]) / 3 > 0.6


# --- resume -----------------------------------------------------------------------------------------------------------

RESUMED = {
    "adaptive KL, EMA reference, dynamic sampling": (
        "grpo",
        ["grpo.kl={coef: 0.1, target: 0.05, horizon: 50, reference: ema}", "grpo.groups.dynamic=true"],
    ),
    "LoRA and PTX": ("grpo", [LORA, "grpo.loss.ptx_coef=0.2", "grpo.kl.coef=0.05"]),
    "a critic of its own, adaptive KL in the reward": ("ppo", ["ppo.kl={coef: 0.1, target: 0.05, horizon: 50}"]),
    "keep: best": (
        "grpo",
        ["prompts.validation=0.2", "grpo.evaluate_every=1", "grpo.keep=best", "grpo.keep_by=reward"],
    ),
    "a shared critic": ("ppo", ["ppo.critic.shared=true"]),
    "a surrogate reward": (
        "grpo",
        [f"rewards={SURROGATE}", "grpo.groups.dynamic=true", "grpo.credit.kind=leave_one_out"],
    ),
    "prompts by difficulty": (
        "grpo",
        ["rewards={gridworld: {weight: 1.0}}", "grpo.sampler.kind=difficulty", "grpo.groups.dynamic=true"],
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_detail_41_a_run_killed_in_a_step_and_resumed_ends_in_the_same_bytes(tmp_path, model, monkeypatch, name):
    """Killed after its samples were drawn: between two checkpoints, with a step half done."""
    stage, overrides = RESUMED[name]
    given = [*overrides, f"{stage}.steps=5", f"{stage}.checkpoint_every=2", f"{stage}.optimizer.schedule=cosine"]
    assert run_stage(tmp_path / "whole", model, stage, *given) == 0
    update = loop.update_policy

    def killed(deps, state, batch):
        if state.step == 3:
            raise KeyboardInterrupt
        return update(deps, state, batch)

    monkeypatch.setattr(loop, "update_policy", killed)
    assert run_stage(tmp_path / "killed", model, stage, *given) == 130
    monkeypatch.setattr(loop, "update_policy", update)
    engines.close_generators()
    assert run_stage(tmp_path / "killed", model, stage, *given) == 0
    for file in ("metrics.jsonl", "rollouts.jsonl", "difficulty.jsonl", "model/model.safetensors"):
        whole, again = ((tmp_path / root / "t" / stage / file).read_bytes() for root in ("whole", "killed"))
        assert whole == again, file
    whole, again = (manifest(tmp_path / root, stage) for root in ("whole", "killed"))
    assert whole["tokens"] == again["tokens"] and whole["metrics"] == again["metrics"]
    if "adaptive" in name:  # detail 20: the controller moved, and went on from where it was
        coefficients = [m["kl_coef"] for m in metrics(tmp_path / "killed", stage)]
        assert len(set(coefficients)) == 5


# --- a run that an alarm stops ----------------------------------------------------------------------------------------


def test_an_alarm_is_noted_for_who_looks_later_and_goes_when_the_stage_runs_again(tmp_path, model, capsys):
    given = ["rewards={letters: {kind: function, path: 'loop_kit:constant'}}", "grpo.alarms.no_signal_steps=2"]
    config = [str(write_config(tmp_path, model)), f"runs_dir={tmp_path}", *given]
    assert main(["run", *config, "grpo.steps=4"]) == 3
    assert f"report: {tmp_path / 't/report.html'}" in capsys.readouterr().out, "the report of what led to it"
    view = watch_view.read(tmp_path / "t")
    assert "every group had constant reward for 2 consecutive steps" in (view.alarm or "")
    assert "stopped by an alarm" in "\n".join(watch_frame.draw(view, width=100, colour=False).lines)
    assert "every group had constant reward" in (tmp_path / "t/report.html").read_text()
    engines.close_generators()
    assert main(["run", *config, "grpo.steps=4", "grpo.alarms.no_signal_steps=9"]) == 0
    assert not (tmp_path / "t/grpo/stopped.json").exists() and watch_view.read(tmp_path / "t").alarm is None
    assert "stopped.json" not in manifest(tmp_path, "grpo")["outputs"]


# --- keep: best -------------------------------------------------------------------------------------------------------

# trained towards more and more of one letter, and validated by how near its share is to a half: the best lies between
OVERSHOOT = ["grpo.reward={letters: {kind: function, path: 'loop_kit:letters'}}",
             "rewards={half: {kind: function, path: 'loop_kit:near_a_half'}}", "prompts.validation=0.2",
             "evaluation={samples: 8, prompts: 8, k: 1}", "grpo.optimizer.learning_rate=3.0e-2"]  # fmt: skip
KEEP_BEST = ["grpo.evaluate_every=2", "grpo.keep=best", "grpo.keep_by=reward"]


def test_keep_best_saves_the_weights_of_the_step_with_the_best_validation_figure(tmp_path, model, capsys):
    assert run_stage(tmp_path / "best", model, "grpo", *OVERSHOOT, *KEEP_BEST, "grpo.steps=15") == 0
    rows = metrics(tmp_path / "best", "grpo")
    passes = {row["step"]: row["validation_reward"] for row in rows if "validation_reward" in row}
    assert list(passes) == [2, 4, 6, 8, 10, 12, 14, 15]  # the last step too, though it is no multiple
    best = max(passes, key=lambda step: (passes[step], -step))
    assert 2 < best < 14 and max(passes.values()) > passes[15] + 0.05
    figures = manifest(tmp_path / "best", "grpo")["metrics"]
    assert (figures["best_step"], figures["steps"]) == (best, 15)
    assert figures["best_validation_reward"] == passes[best]
    assert f"the weights of step {best} of 15 are kept" in capsys.readouterr().out
    engines.close_generators()
    assert run_stage(tmp_path / "short", model, "grpo", *OVERSHOOT, f"grpo.steps={best}") == 0
    saved, alone = (tmp_path / name / "t/grpo/model/model.safetensors" for name in ("best", "short"))
    assert saved.read_bytes() == alone.read_bytes()
    reported, other = (manifest(tmp_path / name, "grpo")["metrics"] for name in ("best", "short"))
    assert reported["heldout_reward"] == other["heldout_reward"]  # the generator held those weights too
    engines.close_generators()
    early = [*OVERSHOOT, *KEEP_BEST, "grpo.steps=15", "grpo.patience=1"]
    assert run_stage(tmp_path / "early", model, "grpo", *early) == 0
    falls = next(later for before, later in itertools.pairwise(passes) if passes[later] <= passes[before])
    figures = manifest(tmp_path / "early", "grpo")["metrics"]
    assert figures["stopped_early"] and figures["steps"] == falls < 15 and figures["best_step"] == falls - 2


def test_asked_to_stop_while_it_samples_a_run_saves_what_the_step_began_with(tmp_path, model, monkeypatch, capsys):
    given = ["grpo.steps=5", "grpo.checkpoint_every=99", "grpo.groups.dynamic=true", "grpo.optimizer.schedule=cosine"]
    assert run_stage(tmp_path / "whole", model, "grpo", *given) == 0
    draw = loop.gather_groups

    def asked_to_stop(deps, state):
        drawn = draw(deps, state)
        if state.step == 3:
            raise shutdown.Stopped
        return drawn

    monkeypatch.setattr(loop, "gather_groups", asked_to_stop)
    assert run_stage(tmp_path / "stopped", model, "grpo", *given) == 143
    monkeypatch.setattr(loop, "gather_groups", draw)
    engines.close_generators()
    capsys.readouterr()
    assert run_stage(tmp_path / "stopped", model, "grpo", *given) == 0
    assert "grpo: resuming at step 3 of 5" in capsys.readouterr().out
    for file in ("metrics.jsonl", "rollouts.jsonl", "difficulty.jsonl", "model/model.safetensors"):
        whole, again = ((tmp_path / root / "t/grpo" / file).read_bytes() for root in ("whole", "stopped"))
        assert whole == again, file
    assert manifest(tmp_path / "whole", "grpo")["tokens"] == manifest(tmp_path / "stopped", "grpo")["tokens"]


def test_with_dynamic_sampling_the_logged_reward_is_the_policys_and_not_the_chosen_groups(tmp_path, model):
    """difficulty.jsonl holds every sampled group, those that were replaced too."""
    given = ["grpo.groups={dynamic: true, refill_cap: 3}", "grpo.steps=2"]
    assert run_stage(tmp_path, model, "grpo", *given) == 0
    groups = [json.loads(line) for line in (tmp_path / "t/grpo/difficulty.jsonl").read_text().splitlines()]
    rollouts = [json.loads(line) for line in (tmp_path / "t/grpo/rollouts.jsonl").read_text().splitlines()]
    for number, line in enumerate(metrics(tmp_path, "grpo")):
        every = [g["reward_mean"] for g in groups if g["step"] == number]
        assert len(every) == 4 * line["batches_sampled"]
        assert line["reward_mean"] == pytest.approx(sum(every) / len(every))
        trained = [row["reward"] for row in rollouts if row["step"] == number]
        assert line["reward_mean_trained"] == pytest.approx(sum(trained) / len(trained))


def test_a_budget_of_tokens_ends_the_run(tmp_path, model):
    assert run_stage(tmp_path, model, "grpo", "grpo.steps=50", "grpo.token_budget=200") == 0
    steps = metrics(tmp_path, "grpo")
    spent = [sum(m["tokens"] for m in steps[: i + 1]) for i in range(len(steps))]
    assert len(steps) < 50 and spent[-1] >= 200 > spent[-2]
    assert manifest(tmp_path, "grpo")["tokens"]["completion"] == spent[-1]


# --- several processes ------------------------------------------------------------------------------------------------


def launch(processes: int, root: Path, model: Path, stage: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    config = write_config(root, model)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    torchrun += ["--master_port", str(29500 + os.getpid() % 1000)]
    command = [*torchrun, "-m", "pipeline", stage, str(config), f"runs_dir={root}", *overrides]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


SHARED = {
    "grpo": ["grpo.kl.coef=0.1", "grpo.minibatches=2", "grpo.prompts=5", "grpo.samples=4", "grpo.loss.ptx_coef=0.1"],
    "ppo": ["ppo.prompts=5", "ppo.kl={coef: 0.1, target: 0.05}", "ppo.critic.warmup_steps=1"],
}


@pytest.mark.parametrize("stage", SHARED)
def test_detail_34_two_processes_and_one_give_the_same_loss_and_weights(tmp_path, model, stage):
    """Three steps, prompts that do not divide by two; a token cut into micro-batches in between."""
    given = [*SHARED[stage], f"{stage}.steps=3", f"{stage}.tokens_per_microbatch=120"]
    assert run_stage(tmp_path / "one", model, stage, *given) == 0
    done = launch(2, tmp_path / "two", model, stage, *given)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    one, two = metrics(tmp_path / "one", stage), metrics(tmp_path / "two", stage)
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in set(a) - {"canary_max_abs"} - {n for n in a if n.startswith("mismatch")}:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), f"step {a['step']}: {name}"
    left, right = weights(tmp_path / "one", stage), weights(tmp_path / "two", stage)
    assert max(float((left[n] - right[n]).abs().max()) for n in left) < 1e-5
    rows = [(tmp_path / root / "t" / stage / "rollouts.jsonl").read_text().splitlines() for root in ("one", "two")]
    ids = [[json.loads(row)["ids"] for row in some] for some in rows]
    assert ids[0] == ids[1], "seeds go by the place in the whole step"
    tokens = [manifest(tmp_path / root, stage)["tokens"] for root in ("one", "two")]
    assert tokens[0] == tokens[1]
    assert done.stdout.count(f"── {stage} done") == 1, "only rank 0 speaks and writes"


def test_an_alarm_ends_all_processes_with_its_cause(tmp_path, model):
    done = launch(2, tmp_path, model, "grpo", "rewards.letters.path=loop_kit:broken")
    assert done.returncode != 0
    assert done.stderr.count("stopped by an alarm: step 0: 100% of the samples could not be scored") == 2
    assert not (tmp_path / "t" / "grpo" / "manifest.json").exists()


def test_a_launch_of_two_processes_that_silently_became_one_is_refused(tmp_path, model):
    config = write_config(tmp_path, model)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run([*accelerate, "-m", "pipeline", "grpo", str(config), f"runs_dir={tmp_path}"], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode != 0
    assert "launched for 2 processes, and this one sees 1" in done.stderr
    assert not (tmp_path / "t" / "grpo").exists()


@pytest.mark.parametrize(
    ("environ", "parent", "expected"),
    [
        ({}, ["bash"], 1),
        ({"WORLD_SIZE": "4", "RANK": "1"}, [], 4),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, [], 3),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ["accelerate", "launch", "--cpu", "--num_processes", "2", "x"], 2),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ["accelerate", "launch", "--num-processes=3", "x"], 3),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ["accelerate", "launch", "--cpu", "x"], 1),
        ({}, ["accelerate", "launch", "--num_processes", "2", "x"], 1),
    ],
)
def test_how_many_processes_were_asked_for_is_read_from_the_launcher(environ, parent, expected):
    assert ranks.requested_processes(environ, parent) == expected


def test_accelerates_config_file_is_read_too(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text("num_processes: 2\n")
    words = ["accelerate", "launch", "--config_file", str(file), "-m", "pipeline"]
    assert ranks.requested_processes({"ACCELERATE_MIXED_PRECISION": "no"}, words) == 2
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node 2"):
        ranks.check(2, 1)


def test_micro_batches_are_dealt_so_that_every_rank_has_as_many_and_none_is_lost(monkeypatch):
    batches = [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]
    for size in (1, 2, 3, 4, 5, 12):
        monkeypatch.setattr(ranks, "world", lambda size=size: size)
        hands = []
        for place in range(size):
            monkeypatch.setattr(ranks, "rank", lambda place=place: place)
            hands.append(ranks.dealt(batches))
        assert len({len(hand) for hand in hands}) == 1
        assert sorted(i for hand in hands for batch in hand for i in batch) == list(range(10))


def test_shares_of_places_are_in_order_and_whole(monkeypatch):
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(ranks, "world", lambda size=size: size)
        parts = []
        for place in range(size):
            monkeypatch.setattr(ranks, "rank", lambda place=place: place)
            parts += list(ranks.share(5))
        assert parts == list(range(5))


def test_a_compiled_policy_gives_the_same_log_probs(tmp_path, model):
    plain = run_stage(tmp_path / "plain", model, "grpo", "grpo.steps=1")
    compiled = run_stage(tmp_path / "compiled", model, "grpo", "grpo.steps=1", "grpo.compile=true")
    assert plain == compiled == 0
    a, b = (metrics(tmp_path / name, "grpo")[0] for name in ("plain", "compiled"))
    assert b["entropy"] == pytest.approx(a["entropy"], rel=1e-4)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def test_a_trainer_steps_that_bfloat16_weights_would_lose(tmp_path, model):
    """At a rate of 1e-4 a step on a weight of 0.1 is less than half of what bfloat16 tells apart; forty are not."""
    sft = f"sft={{policy: {model}, trainer: {{max_steps: 40, learning_rate: 1.0e-4, per_device_train_batch_size: 8}}}}"
    assert run_stage(tmp_path, model, "sft", "model.dtype=bfloat16", sft) == 0
    from safetensors.torch import load_file

    start, end = load_file(model / "model.safetensors"), weights(tmp_path, "sft")
    assert {t.dtype for t in end.values()} == {torch.bfloat16}
    large = {name: t.bfloat16().abs() > 0.06 for name, t in start.items() if t.ndim == 2}
    moved = [(end[name] != start[name].bfloat16())[where].float().mean().item() for name, where in large.items()]
    assert sum(moved) / len(moved) > 0.5, moved


def test_policies_of_two_families_are_judged_each_on_prompts_in_its_own_ids(tmp_path, model, capsys):
    from loop_kit import TINY

    from pipeline.models import models

    other = tmp_path / "other"
    models.make_tiny(replace(TINY, characters=TINY.characters[::-1]), other, seed=1)
    assert run_stage(tmp_path, model, "evaluate", f"evaluate.policies=[{model},{other}]", "stages=[evaluate]") == 0
    rows = [json.loads(line) for line in (tmp_path / "t/evaluate/rollouts.jsonl").read_text().splitlines()]
    spelled: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        tokenizer = models.load_tokenizer(row["policy"], Model())
        spelled.setdefault(row["policy"], set()).add((row["prompt"], tokenizer.decode(row["prompt_ids"])))
    assert len(spelled) == 2 and all(said.endswith(text) for pairs in spelled.values() for text, said in pairs)


def test_checkpointing_saves_memory_in_policy_and_critic_and_changes_no_weight(tmp_path, model, monkeypatch):
    from transformers import PreTrainedModel

    made = []
    enable = PreTrainedModel.gradient_checkpointing_enable

    def noted(self, **how):
        made.append(self)
        enable(self, **how)

    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", noted)
    for on in ("false", "true"):
        assert run_stage(tmp_path / on, model, "ppo", f"ppo.gradient_checkpointing={on}") == 0
    plain, checkpointed = (weights(tmp_path / on, "ppo") for on in ("false", "true"))
    assert len(made) == 2, "the policy and its critic"
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
