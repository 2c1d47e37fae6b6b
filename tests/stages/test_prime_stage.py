"""A YAML that names a Prime environment: its tasks as prompts, its episodes and rewards in GRPO."""

from __future__ import annotations

import json
from pathlib import Path

import prime_tasksets
import pytest
from loop_kit import PLAIN_TEMPLATE, manifest, metrics
from public_packages import interpreter

from pipeline.__main__ import main

CONFIG = """
run: t
seed: 1
model:
  tiny: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
         characters: "0123456789=", max_position_embeddings: 128}}
  chat_template: template.jinja
prompts: {{prime: &environment {{python: {python}, taskset: {taskset}, dirs: [{folder}]}}, heldout: 0.3, chat: true}}
{more}
sampling: {{max_tokens: 4}}
generate: {{backend: transformers}}
evaluation: {{samples: 2, k: 2}}
stages: [base, grpo]
grpo: {{policy: base, steps: 2, prompts: 2, samples: 4, optimizer: {{learning_rate: 1.0e-3}}}}
"""
TALKS = "tools: {prime: *environment, max_turns: 4, max_tokens: 60}\nrewards: {environment: {weight: 1.0}}"
EQUAL = "rewards: {prime_rubric: {environment: *environment}}"


@pytest.mark.long
@pytest.mark.parametrize(("taskset", "more"), [("talks", TALKS), ("equal", EQUAL)], ids=["turns", "rubric"])
def test_two_steps_of_grpo_on_a_prime_environment(
    taskset: str, more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    python = interpreter("verifiers", prime_tasksets.VERSION)
    folder = prime_tasksets.written(tmp_path / "tasksets")
    (tmp_path / "template.jinja").write_text(PLAIN_TEMPLATE)
    (tmp_path / "t.yaml").write_text(CONFIG.format(python=python, taskset=taskset, folder=folder, more=more))
    assert main(["run", "t.yaml"]) == 0, capfd.readouterr().err[-2000:]
    assert len(metrics(tmp_path / "runs", "grpo")) == 2
    rollouts = [json.loads(line) for line in (tmp_path / "runs/t/grpo/rollouts.jsonl").read_text().splitlines()]
    assert len({r["prompt"] if isinstance(r["prompt"], str) else str(r["prompt"]) for r in rollouts}) > 1
    if taskset == "talks":
        episodes = [r["episode"] for r in rollouts if r.get("episode")]
        assert {e["ended_by"] for e in episodes} <= {"environment", "length"}
        assert len(episodes) == 16 and any(e["turns"] > 1 for e in episodes)
        assert all(0 <= e["reward"] <= 4 for e in episodes)
    inputs = json.dumps(manifest(tmp_path / "runs", "grpo")["inputs"])
    assert f"{taskset}.py" in inputs, "a stage depends on the environment's file"
