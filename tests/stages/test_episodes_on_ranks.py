"""Episodes with tools and with a program on two processes: what one process gives."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks_kit
from safetensors.torch import load_file
from test_program_stage import AGENT, PROGRAM, TOOLS
from test_tool_stage import CONFIG, write_rows

ROOT = ranks_kit.ROOT
TOLERANCE = 1e-5
FEEDME = """
feedme: {policy: sft, rounds: 1, prompts: 6, samples: 3, filters: [{threshold: 0.0}, {top_k: 2}], random_control: false,
         more_sft_control: false, trainer: {max_steps: 2, per_device_train_batch_size: 8, learning_rate: 1.0e-3,
         logging_steps: 1, dataloader_drop_last: true, adam_epsilon: 1.0e-4}}
"""
STAGES = ("grpo", "feedme")


def written(place: Path, kind: str) -> Path:
    """The config, with paths that hold from any directory."""
    schema = [{"type": "function", "function": {"name": "calculator", "parameters": {}}}]
    write_rows(place, **({"tools": schema} if kind == "program" else {}))
    (place / "agent.py").write_text(AGENT)
    program = PROGRAM.replace("agent.py", str(place / "agent.py"))
    text = CONFIG.replace(TOOLS, program) if kind == "program" else CONFIG
    text = (
        text.replace("rows.jsonl", str(place / "rows.jsonl"))
        .replace("steps: 3", "steps: 2")
        .replace("{samples: 2, k: 2}", "{samples: 1, k: 1}")
    )
    text = text.replace("[base, sft, grpo]", "[base, sft, grpo, feedme]")
    (place / "t.yaml").write_text((text + FEEDME) % {"root": ROOT})
    return place / "t.yaml"


def rows_of(run: Path, stage: str) -> list[Any]:
    rows = [json.loads(line) for line in (run / stage / "rollouts.jsonl").read_text().splitlines()]
    return [(row["prompt_index"], row["sample"], row["ids"], row.get("sampled"), row.get("episode"), row["reward"])
            for row in rows]  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(2400)  # two runs, and four processes that each import torch
@pytest.mark.parametrize("kind", ["tools", "program"])
def test_two_processes_play_the_episodes_that_one_plays(kind: str, tmp_path: Path) -> None:
    config, one, two = str(written(tmp_path, kind)), tmp_path / "one", tmp_path / "two"
    alone = ranks_kit.run([sys.executable, "-m", "pipeline", "run", config, f"runs_dir={one}"])
    assert alone.returncode == 0, alone.stderr[-3000:]
    for parent in ("base", "sft"):
        shutil.copytree(one / "t" / parent, two / "t" / parent)
    words = ["run", config, f"runs_dir={two}", "feedme.trainer.per_device_train_batch_size=4"]
    together = ranks_kit.run(ranks_kit.accelerated("ddp", 2, *words))
    assert together.returncode == 0, together.stdout[-1500:] + together.stderr[-3000:]
    for stage in STAGES:
        rows = rows_of(one / "t", stage)
        assert rows == rows_of(two / "t", stage), stage
        assert any(episode and episode["calls"] for _, _, _, _, episode, _ in rows), "the policy has learned to call"
        weights = [load_file(runs / "t" / stage / "model" / "model.safetensors") for runs in (one, two)]
        assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < TOLERANCE, stage
        tokens = [json.loads((runs / "t" / stage / "manifest.json").read_text())["tokens"] for runs in (one, two)]
        assert tokens[0] == tokens[1]
