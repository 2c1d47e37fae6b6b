"""Runs whose reward is a grader of another tool, and stages that train on what people compared in the UI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loop_kit import manifest, metrics

from pipeline.__main__ import main
from pipeline.cli.human_ratings import RatingDesk

GRADER = {"type": "text_similarity", "name": "close", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.9,
          "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}  # fmt: skip
CONFIG = """
run: t
seed: 1
model:
  tiny: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
         characters: "0123456789=+", max_position_embeddings: 64}
prompts: {path: rows.jsonl, heldout: 0.3}
rewards: {openai_grader: {file: grader.json}}
sampling: {max_tokens: 6}
generate: {backend: transformers}
evaluation: {samples: 2, k: 2}
stages: [base, grpo]
grpo: {policy: base, steps: 2, prompts: 8, samples: 4, optimizer: {learning_rate: 1.0e-3}}
"""
ON_PAIRS = """
stages: [base, reward_model, dpo]
reward_model: {policy: base, pool: [runs/t/comparisons.jsonl], trainer: {max_steps: 2, per_device_train_batch_size: 2}}
dpo: {policy: base, pool: [runs/t/comparisons.jsonl], trainer: {max_steps: 2, per_device_train_batch_size: 2}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of two GRPO steps whose reward is an OpenAI grader."""
    folder = tmp_path_factory.mktemp("grader")
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "grader.json").write_text(json.dumps(GRADER))
    (folder / "t.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "t.yaml"]) == 0
    return folder


def test_a_grader_json_is_the_reward_of_a_run(finished: Path) -> None:
    assert len(metrics(finished / "runs", "grpo")) == 2
    rollouts = [json.loads(line) for line in (finished / "runs/t/grpo/rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 64
    assert len({row["reward"] for row in rollouts}) > 2, "fuzzy_match grades in steps"
    assert {row["status"] for row in rollouts} <= {"pass", "fail"}
    one = next(row for row in rollouts if 0 < row["reward"] < 1)
    assert str(one["reward"])[:4] in one["detail"] or one["parts"]["openai_grader"] == one["reward"]
    assert "grader.json" in json.dumps(manifest(finished / "runs", "grpo")["inputs"])


def test_a_reward_model_and_dpo_train_on_what_people_compared(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    desk = RatingDesk(finished / "runs" / "t")
    compared = 0
    while (pair := desk.next_pair("grpo")) is not None:
        better, worse = sorted(pair["answers"], key=lambda answer: answer["completion"])
        desk.prefer("grpo", better["key"], worse["key"])
        compared += 1
    assert compared >= 4
    (finished / "pairs.yaml").write_text(CONFIG.partition("stages:")[0].replace("run: t", "run: pairs") + ON_PAIRS)
    assert main(["run", "pairs.yaml"]) == 0
    stages = {name: manifest(finished / "runs", name, run="pairs") for name in ("base", "reward_model", "dpo")}
    figures = stages["reward_model"]["metrics"]
    assert figures["pairs"] > 0, "compared pairs and their corrupted negatives"
    for name in ("reward_model", "dpo"):
        assert "comparisons.jsonl" in json.dumps(stages[name]["inputs"])
    weights = [(finished / "runs/pairs" / name / "model/model.safetensors").read_bytes() for name in ("base", "dpo")]
    assert weights[0] != weights[1], "two steps of DPO change the policy"
