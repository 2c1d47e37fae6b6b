"""Faults built into real stages: told in a line or mended, nothing complete is lost, and the bytes are the same."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli.chaos import Server

pytestmark = pytest.mark.stages
ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/demo/chaos.yaml")
TINY = ["generate.backend=transformers", "prompts.rows=300", "evaluation.prompts=8", "grpo.groups.dynamic=false",
        "sft.trainer.max_steps=100"]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("server")
    made = Server(place / "log", (sys.executable, str(ROOT / "tests/injected.py")))
    yield made
    made.close()


class Runner:
    """Runs one stage in a child on a copy of the reference's parents."""

    def __init__(self, server: Server, place: Path) -> None:
        self.server, self.place = server, place

    def __call__(self, stage: str, run: str, **how) -> int:
        self.words = [stage, CONFIG, f"runs_dir={self.place}", f"run={run}", *TINY]
        self.code, self.ended = self.server.run(self.words, **how)
        return self.code

    def fresh(self, run: str, *parents: str) -> Path:
        for parent in parents:
            shutil.copytree(self.place / "reference" / parent, self.place / run / parent)
        return self.place / run

    def outputs(self, run: str, stage: str) -> dict:
        manifest = json.loads((self.place / run / stage / "manifest.json").read_text())
        return {"outputs": manifest["outputs"], "tokens": manifest["tokens"]}

    def same(self, run: str, stage: str) -> bool:
        return self.outputs(run, stage) == self.outputs("reference", stage)

    @property
    def said(self) -> str:
        return self.server.log.read_text()


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    runner = Runner(server, tmp_path_factory.mktemp("runs"))
    for stage in ("base", "sft", "grpo"):
        assert runner(stage, "reference") == 0, runner.said
    return runner


@pytest.fixture
def run(reference):
    reference.server.log.write_text("")
    return reference


def test_a_generator_that_dies_in_a_batch_is_started_once_and_samples_the_same(run):
    run.fresh("dies", "base", "sft")
    assert run("grpo", "dies", fault="generator_dies", given=[2, 1]) == 0, run.said
    assert run.said.count("restarting it once") == 1
    assert run.same("dies", "grpo")


def test_a_generator_that_dies_again_stops_the_run_which_goes_on_later(run):
    place = run.fresh("dies-twice", "base", "sft")
    assert run("grpo", "dies-twice", fault="generator_dies", given=[4, 99]) == 1
    assert "EngineDeadError" in run.said and not (place / "grpo/manifest.json").exists()
    assert run("grpo", "dies-twice") == 0
    assert "interrupted" in run.said and run.same("dies-twice", "grpo")


@pytest.mark.parametrize(
    "stage,fault,given",
    [
        ("sft", "log_is_full", [2]),
        ("sft", "checkpoint_is_full", [1]),
        ("sft", "model_is_full", [0]),
        ("sft", "manifest_is_full", []),
        ("grpo", "log_is_full", [5]),
        ("grpo", "checkpoint_is_full", [4]),
        ("grpo", "log_turns_read_only", [5]),
    ],
)
def test_a_full_or_read_only_disk_is_reported_in_a_line_and_nothing_finished_is_lost(run, stage, fault, given):
    name = f"{fault}-{stage}"
    place = run.fresh(name, "base", *(["sft"] if stage == "grpo" else []))
    assert run(stage, name, fault=fault, given=given) == 2, run.said
    told = "not writable (Read-only file system)" if "read_only" in fault else "the disk is full; free space"
    assert told in run.said
    assert "Traceback" not in run.said
    assert not (place / stage / "manifest.json").exists()
    assert run(stage, name) == 0, run.said
    assert run.same(name, stage)


def test_a_clock_that_jumps_changes_nothing(run):
    run.fresh("clock", "base")
    for stage in ("sft", "grpo"):
        assert run(stage, "clock", fault="clock_jumps") == 0, run.said
        assert run.same("clock", stage)


def newest_whole(place: Path, index: str) -> Path:
    return max((p.parent for p in place.glob(index)), key=lambda p: int(p.name.rpartition("-")[2]))


def interrupted(run, stage: str, name: str, seen: str, **how) -> Path:
    """Let the stage run until a file `seen` appears below it, then end it; returns the stage's place."""
    place = run.place / name / stage
    run(stage, name, end_when=lambda: any(place.glob(seen)), **how)
    assert run.ended, run.said
    return place


SEALED = {"sft": "checkpoints/training-sft/checkpoint-*/index.json", "grpo": "checkpoints/step-*/index.json"}


@pytest.mark.parametrize("stage,seen", SEALED.items())
def test_a_truncated_checkpoint_is_reported_and_the_stage_ends_in_the_same_bytes(run, stage, seen):
    name = f"truncated-{stage}"
    run.fresh(name, "base", *(["sft"] if stage == "grpo" else []))
    place = interrupted(run, stage, name, seen)
    newest = newest_whole(place, seen)
    victim = max((p for p in newest.iterdir() if p.name != "index.json"), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert run(stage, name) == 0, run.said
    assert run.same(name, stage)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("ending,code", [("term", 143), ("int", 130)])
def test_asked_to_stop_a_stage_ends_within_half_a_minute_and_goes_on(run, stage, ending, code):
    name = f"{ending}-{stage}"
    run.fresh(name, "base", *(["sft"] if stage == "grpo" else []))
    started = time.monotonic()
    place = interrupted(run, stage, name, "metrics.jsonl", ending=ending)
    assert run.code == code, run.said
    assert "Traceback" not in run.said
    assert not (place / "manifest.json").exists()
    assert time.monotonic() - started < 120  # on any machine; the stop itself is bounded by a timer of its own
    saved = newest_whole(place, SEALED[stage]).name.rpartition("-")[2] if ending == "term" else None
    assert run(stage, name) == 0, run.said
    assert saved is None or f"{stage}: resuming at step {saved} of" in run.said
    assert run.same(name, stage)


def test_a_corrupted_shard_of_a_parent_is_refused_by_name_and_nothing_starts(run):
    place = run.fresh("corrupt", "base", "sft")
    shard = place / "sft/model/model.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert run("grpo", "corrupt") == 2
    assert f"{shard}: changed since the stage wrote it" in run.said
    assert not (place / "grpo").exists()


def test_a_complete_stage_is_skipped_and_one_that_was_edited_is_made_again_beside_the_old(run):
    place = run.fresh("edited", "base", "sft", "grpo")
    before = (place / "grpo/manifest.json").read_text()
    assert run("grpo", "edited") == 0 and "grpo: up to date" in run.said
    assert (place / "grpo/manifest.json").read_text() == before
    code, _ = run.server.run([*run.words, "grpo.optimizer.learning_rate=1e-3"])
    assert code == 0 and "its config changed: stage.optimizer.learning_rate 0.0003 → 0.001" in run.said
    assert (place / ".replaced/grpo/manifest.json").read_text() == before
    assert not run.same("edited", "grpo")
