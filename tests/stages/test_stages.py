"""The chain, real and tiny: real model, real TRL, real rollouts, a few steps a stage, through the command line."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from pipeline.records import read_scored
from pipeline.run.files import sha256_file

pytestmark = pytest.mark.stages
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "pipeline.yaml"
STAGES = ["base", "sft", "feedme", "reward_model", "ppo", "grpo", "conditioned", "evaluate"]
SMALL = [
    "prompts.rows=3000",
    "evaluation.samples=4",
    "evaluation.prompts=40",
    "sft.trainer.max_steps=60",
    "feedme.rounds=2",
    "feedme.prompts=128",
    "feedme.trainer.max_steps=10",
    # what a hardly trained policy reaches at all
    "feedme.filters=[{threshold: 0.25}, dedup, {cap: 4}]",
    "reward_model.prompts=128",
    "reward_model.trainer.max_steps=10",
    "ppo.steps=3",
    "ppo.critic.warmup_steps=1",
    "grpo.steps=3",
    "conditioned.prompts=128",
    "conditioned.demonstrations=500",
    "conditioned.per_bin=64",
    "conditioned.trainer.max_steps=10",
]
POLICY_METRICS = {
    "heldout_accuracy",
    "heldout_accuracy_ci95",
    "pass_at_4",
    "mean_completion_tokens",
    "distinct_answers",
}
STAGE_METRICS = {
    "feedme": {"rounds", "random_control_accuracy"},
    "reward_model": {"heldout_pair_accuracy"},
    "ppo": {"kl_to_reference", "mismatch_mean_abs", "canary_max_abs", "generator"},
    "grpo": {"kl_to_reference", "mismatch_mean_abs", "canary_max_abs", "generator"},
    "conditioned": {
        "control_curve",
        "spearman_of_bin_means",
        "unconditioned_accuracy",
        "top_bin_accuracy",
        "shuffled_spearman",
    },
}


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)


@pytest.fixture(scope="module")
def run(tmp_path_factory, forked) -> tuple[Path, list[str], str]:
    """(the run's directory, the overrides that made it, what it printed)."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = [f"runs_dir={runs}", "run=small", *SMALL]
    done = forked("run", str(CONFIG), *overrides)
    assert done.returncode == 0, done.stdout[-6000:]
    return runs / "small", overrides, done.stdout


def manifest(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "manifest.json").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_a_complete_manifest_whose_outputs_hash_to_what_it_says(run, stage):
    made = manifest(run[0], stage)
    keys = "stage status parents config inputs outputs metrics seed git versions tokens wall_s"
    assert set(keys.split()) <= made.keys()
    assert made["status"] == "complete" and made["stage"] == stage and made["seed"] == 1
    for name, digest in made["outputs"].items():
        assert sha256_file(run[0] / stage / name) == digest
    if stage != "reward_model":
        assert made["metrics"].keys() >= POLICY_METRICS
    assert made["metrics"].keys() >= STAGE_METRICS.get(stage, set())


def test_policy_optimisation_sampled_with_weights_equal_to_the_trainers(run):
    for stage in ("ppo", "grpo"):
        metrics = manifest(run[0], stage)["metrics"]
        assert metrics["canary_max_abs"] < 1e-3 and metrics["mismatch_mean_abs"] < 1e-4
    assert manifest(run[0], "ppo")["parents"].keys() == {"sft", "reward_model"}


def test_no_stage_trained_on_a_held_out_prompt(run):
    """Rollouts of every training stage, and the demonstrations, against the hash that holds out."""

    def heldout(text: str) -> bool:
        return zlib.crc32(text.encode()) % 10_000 < 2500

    for stage in ("feedme", "reward_model", "ppo", "grpo", "conditioned"):
        prompts = {s.rollout.prompt.text for s in read_scored(run[0] / stage / "rollouts.jsonl")}
        assert prompts and not any(map(heldout, prompts)), stage
    judged = {s.rollout.prompt.text for s in read_scored(run[0] / "evaluate" / "rollouts.jsonl")}
    assert judged and all(map(heldout, judged))


def test_what_was_sampled_is_what_was_scored_and_has_one_logprob_a_token(run):
    rows = list(read_scored(run[0] / "grpo" / "rollouts.jsonl"))
    assert len(rows) == 3 * 32 * 8
    for row in rows:
        assert len(row.rollout.ids) == len(row.rollout.logprobs) <= 16
        assert row.rollout.finished == (row.rollout.ids[-1] == 2)


def test_a_second_run_has_nothing_to_do_and_a_changed_key_reruns_its_stage_alone(run, forked):
    place, overrides, _ = run
    before = {s: manifest(place, s)["outputs"] for s in STAGES}
    again = pipeline("run", str(CONFIG), *overrides)
    assert again.returncode == 0 and again.stdout.count("up to date") == len(STAGES)
    changed = forked("run", str(CONFIG), *overrides, "grpo.steps=2", "stages=[base, sft, ppo, grpo]")
    assert "grpo: its config changed" in changed.stdout and changed.stdout.count("up to date") == 3
    assert manifest(place, "grpo")["metrics"]["steps"] == 2
    assert all(manifest(place, s)["outputs"] == before[s] for s in STAGES if s != "grpo")


def test_a_stage_starts_from_any_local_model_and_any_file_of_rows(run, tmp_path, forked):
    rows = [
        {"prompt": f"{a}{i}>{a}{j}:", "completion": "U" * (j - i), "task": {"start": f"{a}{i}", "goal": f"{a}{j}"}}
        for a in "ae"
        for i in range(1, 5)
        for j in range(i + 1, 6)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    policy = run[0] / "sft" / "model"
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"run: mine\nruns_dir: {tmp_path}\nprompts: {{path: {data}, heldout: 0.3}}\nrewards: {{gridworld: {{}}}}\n"
        f"sampling: {{max_tokens: 8}}\nevaluation: {{samples: 4}}\nmodel: {{path: {policy}}}\n"
        f"grpo: {{policy: {policy}, steps: 2, prompts: 4, samples: 4}}\n"
    )
    done = forked("grpo", str(config))
    assert done.returncode == 0, done.stdout[-3000:]
    made = manifest(tmp_path / "mine", "grpo")
    assert made["parents"] == {} and str(data) in made["inputs"]
    assert made["inputs"][str(policy / "model.safetensors")] == sha256_file(policy / "model.safetensors")


def test_a_parent_altered_after_it_was_made_is_refused_by_name(run):
    place, overrides, _ = run
    weights = place / "sft" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        done = pipeline("grpo", str(CONFIG), *overrides)
        assert done.returncode == 2 and "model.safetensors: changed since the stage wrote it" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    finally:
        weights.write_bytes(whole)
