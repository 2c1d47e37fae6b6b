"""A base and a briefly trained policy on the demo task, created once per test module by the transformers engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.__main__ import main

CONFIG = Path(__file__).parent.parent / "configs" / "demo" / "pipeline.yaml"
SMALL = [
    "generate.backend=transformers",
    "prompts.rows=4000",
    "evaluation.samples=4",
    "evaluation.prompts=30",
    "sft.trainer.max_steps=120",
    "sft.trainer.per_device_train_batch_size=64",
]


def command(runs: Path, name: str, *overrides: str, config: Path = CONFIG) -> int:
    return main([name, str(config), f"runs_dir={runs}", "run=small", *SMALL, *overrides])


def manifest(runs: Path, stage: str) -> dict[str, Any]:
    return json.loads((runs / "small" / stage / "manifest.json").read_text())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
