"""The chain with tools on a tiny model: SFT on conversations with calls, then GRPO on episodes; killed, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from loop_kit import manifest, metrics

from pipeline.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
run: t
seed: 1
model:
  tiny: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
         characters: "0123456789*=[]()\\"calutorexpsin ,E:.", max_position_embeddings: 256}
  chat_template: %(root)s/configs/tools/short.jinja
prompts: {path: rows.jsonl, heldout: 0.3, chat: true}
verifier_dirs: [%(root)s/configs/tools]
rewards: {products: {weight: 1.0}, tool_calls: {weight: -0.01}}
tools: {use: [calculator], format: pythonic, max_turns: 3, max_tokens: 150}
sampling: {max_tokens: 40}
generate: {backend: transformers}
evaluation: {samples: 2, k: 2}
stages: [base, sft, grpo]
sft: {policy: base, trainer: {max_steps: 150, per_device_train_batch_size: 16, learning_rate: 1.0e-2}}
grpo: {policy: sft, steps: 3, prompts: 4, samples: 4, optimizer: {learning_rate: 1.0e-4}}
"""


def write_rows(place: Path, **columns: Any) -> None:
    """Products with conversations that call the calculator."""
    with (place / "rows.jsonl").open("w") as out:
        for left in range(1, 5):
            for right in range(1, 5):
                call = {"function": {"name": "calculator", "arguments": {"expression": f"{left}*{right}"}}}
                completion = [{"role": "assistant", "content": "", "tool_calls": [call]},
                              {"role": "tool", "content": str(left * right)},
                              {"role": "assistant", "content": str(left * right)}]  # fmt: skip
                row = {"prompt": f"{left}*{right}", "completion": completion, "task": {"product": left * right}}
                out.write(json.dumps({**row, **columns}) + "\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tools")
    write_rows(place)
    (place / "t.yaml").write_text(CONFIG % {"root": ROOT})
    return place


def rollouts(root: Path, run: str) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (root / "runs" / run / "grpo" / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_chain_with_tools_calls_them_and_a_killed_one_ends_in_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert main(["run", "t.yaml"]) == 0
    figures = manifest(root / "runs", "grpo")["metrics"]
    assert {"heldout_accuracy", "tool_calls_mean", "turns_mean", "rewritten_history"} <= figures.keys()
    assert "tool_calls_mean" in manifest(root / "runs", "sft")["metrics"]
    steps = metrics(root / "runs", "grpo")
    assert sum(step["tool_calls_mean"] for step in steps) > 0, "the policy has learned from SFT to call"
    assert all("reward/tool_calls" in step for step in steps)
    ended = [sum(v for k, v in step.items() if k.startswith("ended_by/")) for step in steps]
    assert ended == pytest.approx([1.0] * len(steps))
    called = next(r for r in rollouts(root, "t") if "episode" in r and r["episode"]["calls"])
    assert {"assistant", "tool"} <= {m["role"] for m in called["episode"]["messages"]}
    killed_and_resumed(root)
    for name in ("rollouts.jsonl", "model/model.safetensors"):
        one, two = (root / "runs" / run / "grpo" / name for run in ("t", "t2"))
        assert one.read_bytes() == two.read_bytes(), name


def test_keep_best_chooses_by_episodes_with_tools(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    words = ["run=best", "stages=[base, grpo]", "grpo.policy=base", "prompts.validation=0.3", "grpo.evaluate_every=1",
             "grpo.keep=best", "grpo.keep_by=reward", "grpo.steps=2"]  # fmt: skip
    assert main(["run", "t.yaml", *words]) == 0
    passes = {step["step"]: step for step in metrics(root / "runs", "grpo", "best")}
    assert all("validation_tool_calls_mean" in line for line in passes.values())
    best = max(passes, key=lambda step: (passes[step]["validation_reward"], -step))
    assert manifest(root / "runs", "grpo", "best")["metrics"]["best_step"] == best


def killed_and_resumed(root: Path, *words: str, stage: str = "grpo") -> None:
    """The same run as t2, killed with SIGKILL when the stage has logged its first step, and run again."""
    command = [sys.executable, "-m", "pipeline", "run", "t.yaml", "run=t2", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)
    progress = root / "runs" / "t2" / stage / "metrics.jsonl"
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and process.poll() is None:
        if progress.exists() and progress.read_text().count("\n") >= 1:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert subprocess.run(command, cwd=root, env=environment, check=False, stdout=subprocess.DEVNULL).returncode == 0
