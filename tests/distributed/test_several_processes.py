"""Several processes against one: the same figures and weights, in every stage and in every way of cutting a model."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks_kit
import torch
from safetensors.torch import load_file

from pipeline.__main__ import main
from pipeline.config.load import ConfigError, read_yaml
from pipeline.distributed import ranks, sharding
from pipeline.generation.vllm_engine import an_engine_a_rank

pytestmark = pytest.mark.slow
STAGES = ("sft", "feedme", "reward_model", "ppo", "grpo", "conditioned")
TOLERANCE = 1e-5
LORA = "grpo.peft={r: 4, target_modules: [q_proj, v_proj, down_proj], lora_alpha: 16}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole chain by one process."""
    root = tmp_path_factory.mktemp("alone")
    assert main(["run", str(ranks_kit.write_chain(root)), f"runs_dir={root}"]) == 0
    return root / "t"


def launched(root: Path, mode: str, stage: str, *overrides: str) -> Path:
    words = [stage, str(ranks_kit.write_chain(root)), f"runs_dir={root}", *ranks_kit.HALVED, *overrides]
    done = ranks_kit.run(ranks_kit.accelerated(mode, 2, *words))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-1500:] + done.stderr[-3000:]
    return root / "t"


def assert_same(alone: Path, together: Path, stage: str) -> None:
    """Final weights, the loss of every step, held-out figures and tokens."""
    one, two = (load_file(run / stage / "model" / "model.safetensors") for run in (alone, together))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < TOLERANCE
    logs = [[json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
            for run in (alone, together)]  # fmt: skip
    assert len(logs[0]) == len(logs[1]) > 0
    for a, b in zip(*logs, strict=True):
        for name in {"loss", "policy_loss", "value_loss", "ptx_loss", "kl_sequence", "reward_mean"} & a.keys():
            assert b[name] == pytest.approx(a[name], abs=TOLERANCE, rel=TOLERANCE), f"{stage}: {name} of {a}"
    assert same_figures(*(json.loads((run / stage / "manifest.json").read_text()) for run in (alone, together))) == []


def same_figures(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Names of manifest metrics that differ; padding counts as tokens in TRL's, and depends on the batches' cut."""
    ours, theirs = dict(flat(one["metrics"])), dict(flat(two["metrics"]))
    assert ours.keys() == theirs.keys() and one["tokens"] == two["tokens"]
    return [name for name, value in ours.items() if "train_tokens" not in name and not near(value, theirs[name])]


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{name}.{key}")
    elif "wall_s" not in name:
        yield name, value


def near(a: Any, b: Any) -> bool:
    if not isinstance(a, float):
        return bool(a == b)
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, abs_tol=1e-4)


def test_every_stage_by_two_processes_gives_what_one_gives(alone, tmp_path):
    """Every stage of the chain in one launch with configs/accelerate/ddp.yaml, evaluate and the controls included."""
    together = launched(tmp_path, "ddp", "run")
    for stage in STAGES:
        assert_same(alone, together, stage)
    names = ("rollouts.jsonl", "difficulty.jsonl")
    drawn = [[json.loads(line)["ids"] for line in (run / "grpo" / names[0]).read_text().splitlines()]
             for run in (alone, together)]  # fmt: skip
    assert drawn[0] == drawn[1], "each rank samples its share with the seeds of the whole"
    one, two = (json.loads((run / "evaluate" / "manifest.json").read_text()) for run in (alone, together))
    assert same_figures(one, two) == []
    assert not list(together.glob("*/checkpoints")), "the other rank leaves nothing behind"


def from_parents(alone: Path, root: Path, *parents: str) -> Path:
    """A run in which these stages are done already."""
    for parent in parents:
        shutil.copytree(alone / parent, root / "t" / parent)
    return root


def test_fsdp2_over_two_processes_gives_what_one_gives(alone, tmp_path):
    together = launched(from_parents(alone, tmp_path, "base", "sft"), "fsdp2", "grpo")
    assert_same(alone, together, "grpo")


@pytest.mark.parametrize("tied", [True, False])
def test_under_fsdp2_rank_0_alone_reads_the_weights_and_every_rank_holds_its_share(tmp_path, tied):
    save_tiny_qwen(tmp_path, tie_word_embeddings=tied)
    main_rank, other = printed_by_ranks("shard_from_main.py", tmp_path)
    assert main_rank["read"] > 0 and other["read"] == 0
    for line in (main_rank, other):
        assert line["same"] and line["packs"] and line["tied"] == tied
        assert line["share"] == pytest.approx(0.5, abs=0.01)


def printed_by_ranks(script: str, model: Path, mode: str = "fsdp2") -> list[dict[str, Any]]:
    """What each of two ranks prints, by rank."""
    path = str(Path(__file__).parent / script)
    done = ranks_kit.run([*ranks_kit.accelerated(mode, 2)[:-2], path, str(model)])
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "taken apart" not in done.stdout, "FSDP2's groups abort an interpreter that takes its modules apart"
    lines = (line.removeprefix("RANK ") for line in done.stdout.splitlines() if line.startswith("RANK "))
    said = sorted(map(json.loads, lines), key=lambda line: line["rank"])
    assert [line["left"] for line in said] == [True, True], "an interpreter that exits inside a group may abort"
    return said


def test_a_sharded_reference_says_and_follows_what_a_whole_one_does(tmp_path):
    save_tiny_qwen(tmp_path, tie_word_embeddings=True)
    for line in printed_by_ranks("shard_reference.py", tmp_path):
        assert line["share"] == pytest.approx(0.5, abs=0.01)
        assert max(line["logprobs"], line["ema"], line["saved"], line["resumed"]) < 1e-5
        assert line["moved"] > 1e-3, "the weights that it follows were never read"


def test_an_engine_that_is_closed_leaves_the_trainers_group_open(tmp_path):
    """vLLM destroys the default process group with its engine; the run would end at the next collective call."""
    save_tiny_qwen(tmp_path, hidden_size=64)
    one, two = printed_by_ranks("engine_per_rank.py", tmp_path, "ddp")
    assert one["seen"] == two["seen"] == [0, 1]
    assert one["same"] and two["same"] and one["ids"] == two["ids"] and len(one["ids"]) == 8


def save_tiny_qwen(directory: Path, **more: Any) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    config = Qwen2Config(**(sizes | more))
    Qwen2ForCausalLM(config).save_pretrained(directory)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
def test_fsdp2_gives_the_same_in_other_stages(alone, tmp_path, stage):
    """ppo: two models, each with its optimiser, are cut."""
    together = launched(from_parents(alone, tmp_path, *PARENTS[stage]), "fsdp2", stage)
    assert_same(alone, together, stage)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["sft", "grpo", "ppo"])
@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_deepspeed_gives_what_one_process_gives(alone, tmp_path, mode, stage, monkeypatch):
    with_deepspeed(monkeypatch)
    together = launched(from_parents(alone, tmp_path, *PARENTS.get(stage, ("base", "sft"))), mode, stage)
    assert_same(alone, together, stage)


@pytest.fixture(scope="module")
def alone_with_lora(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = from_parents(alone, tmp_path_factory.mktemp("lora"), "base", "sft")
    assert main(["grpo", str(ranks_kit.write_chain(root)), f"runs_dir={root}", LORA]) == 0
    return root / "t"


@pytest.mark.long
@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "zero2", "zero3"])
def test_an_adapter_learns_and_merges_the_same(alone_with_lora, tmp_path, mode, monkeypatch):
    if mode.startswith("zero"):
        with_deepspeed(monkeypatch)
    together = launched(from_parents(alone_with_lora, tmp_path, "base", "sft"), mode, "grpo", LORA)
    assert_same(alone_with_lora, together, "grpo")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_each_rank_samples_with_a_vllm_of_its_own(alone, tmp_path, mode):
    pytest.importorskip("vllm")
    one = from_parents(alone, tmp_path / "one", "base", "sft")
    words = ["generate.backend=vllm"]
    assert main(["grpo", str(ranks_kit.write_chain(one)), f"runs_dir={one}", *words]) == 0
    together = launched(from_parents(alone, tmp_path / "two", "base", "sft"), mode, "grpo", *words)
    assert_same(one / "t", together, "grpo")


def test_an_engine_over_several_gpus_is_refused_where_each_rank_has_its_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"generate\.vllm\.tensor_parallel_size: of several ranks each has an engine"):
        an_engine_a_rank({"tensor_parallel_size": 2})
    assert an_engine_a_rank({}) == {"distributed_executor_backend": "external_launcher"}


@pytest.mark.long
def test_two_nodes_give_what_one_process_gives(alone, tmp_path):
    """Two launchers, one process each, that meet at a port: what two machines do."""
    root, port = from_parents(alone, tmp_path, "base", "sft"), ranks_kit.free_port()
    words = ["grpo", str(ranks_kit.write_chain(root)), f"runs_dir={root}"]
    nodes = [start(ranks_kit.torchrun(1, *words, nodes=2, node=node, port=port)) for node in (0, 1)]
    told = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert_same(alone, root / "t", "grpo")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_killed_rank_ends_all_within_half_a_minute_and_the_run_goes_on(alone, tmp_path, mode, monkeypatch):
    if mode.startswith("zero"):
        with_deepspeed(monkeypatch)
    steps = ["grpo.steps=25", "grpo.checkpoint_every=2"]
    whole = launched(from_parents(alone, tmp_path / "whole", "base", "sft"), mode, "grpo", *steps)
    root = from_parents(alone, tmp_path / "killed", "base", "sft")
    words = ["grpo", str(ranks_kit.write_chain(root)), f"runs_dir={root}", *ranks_kit.HALVED, *steps]
    running = start(ranks_kit.accelerated(mode, 2, *words))
    wait_for(root / "t" / "grpo" / "checkpoints" / "step-6")
    os.kill(pid_of_rank(1, running.pid), signal.SIGKILL)
    killed_at = time.monotonic()
    told = "".join(running.communicate(timeout=60))
    assert time.monotonic() - killed_at < 30 and running.returncode != 0
    # which comes first, the broken pipe or the launcher's SIGTERM, is the machine's affair
    assert "rank 0: another rank has died" in told or "saving a checkpoint" in told, "the survivor says why it ends"
    assert "Signal 9 (SIGKILL) received" in told, "and the launcher what became of the other"
    assert not (root / "t" / "grpo" / "manifest.json").exists()
    again = launched(root, mode, "grpo", *steps)
    for file in ("metrics.jsonl", "rollouts.jsonl", "model/model.safetensors"):
        assert (again / "grpo" / file).read_bytes() == (whole / "grpo" / file).read_bytes(), file


@pytest.mark.long
@pytest.mark.parametrize(("first", "then"), list(itertools.pairwise(["fsdp2", "ddp", "zero3", "zero2", "fsdp2"])))
def test_a_checkpoint_of_one_mode_goes_on_in_another(alone, tmp_path, first, then, monkeypatch):
    with_deepspeed(monkeypatch)
    steps = ["grpo.steps=8", "grpo.checkpoint_every=2", "grpo.kl.coef=0.0"]
    whole = launched(from_parents(alone, tmp_path / "whole", "base", "sft"), "ddp", "grpo", *steps)
    root = from_parents(alone, tmp_path / "stopped", "base", "sft")
    words = ["grpo", str(ranks_kit.write_chain(root)), f"runs_dir={root}", *ranks_kit.HALVED, *steps]
    running = start(ranks_kit.accelerated(first, 2, *words))
    wait_for(root / "t" / "grpo" / "checkpoints" / "step-4")
    os.kill(pid_of_rank(1, running.pid), signal.SIGKILL)
    running.communicate(timeout=60)
    again = launched(root, then, "grpo", *steps)
    assert_same(whole, again, "grpo")


PARENTS = {"sft": ["base"], "reward_model": ["base", "sft"], "ppo": ["base", "sft", "reward_model"],
           "grpo": ["base", "sft"]}  # fmt: skip


def with_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is an extra that the lock leaves out")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ranks_kit.ROOT, env=ranks_kit.environment(), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_for(place: Path, *, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not place.exists():
        assert time.monotonic() < until, f"{place} was never written"
        time.sleep(0.02)


def pid_of_rank(rank: int, launcher: int) -> int:
    """The worker of that rank among the launcher's children."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"no child of {launcher} has rank {rank}")


# --- what is refused before anything loads ----------------------------------------------------------------------------

REFUSED = {
    "fsdp_version: 2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"},
    "2 and 3 are supported": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "Megatron": {"ACCELERATE_USE_MEGATRON_LM": "true"},
}


@pytest.mark.parametrize("told", REFUSED)
def test_a_mode_that_no_stage_runs_under_is_refused(told):
    with pytest.raises(ConfigError, match=told):
        sharding.mode(REFUSED[told])


def test_zero_without_deepspeed_is_refused_with_the_fix(monkeypatch):
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"requirements/cpu\.txt deepspeed, or use configs/accelerate/fsdp2\.yaml"):
        sharding.mode({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})


def test_a_launch_to_cut_a_model_that_became_another_is_refused(monkeypatch):
    """What accelerate makes of FSDP2 on a CPU by itself: DDP, without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    sharding.check_type("FSDP")
    with pytest.raises(ConfigError, match="launched for fsdp2, and accelerate chose MULTI_CPU"):
        sharding.check_type("MULTI_CPU")


def test_cutting_over_one_process_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match="leaves nothing to shard; raise num_processes"):
        ranks.start()


def test_a_run_that_is_done_leaves_its_group(tmp_path, monkeypatch):
    """Gloo's threads, when an interpreter exits inside a group, end some processes with abort (exit -6)."""
    left: list[bool] = []
    monkeypatch.setattr(ranks, "leave", lambda: left.append(True))
    assert main(["base", str(ranks_kit.write_chain(tmp_path)), f"runs_dir={tmp_path}"]) == 0
    assert left == [True]


@pytest.mark.parametrize("mode", sharding.MODES)
def test_a_launch_file_says_its_mode(mode):
    """As accelerate reads it, and as we do from what accelerate then sets."""
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(ranks_kit.ACCELERATE / f"{mode}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert read.distributed_type.value == kinds[mode] and read.num_processes > 1
    raw = read_yaml(ranks_kit.ACCELERATE / f"{mode}.yaml")
    assert raw.get("fsdp_config", {}).get("fsdp_version", 2) == 2
    assert str(raw.get("deepspeed_config", {}).get("zero_stage", mode[-1])) == mode[-1] or mode == "ddp"
