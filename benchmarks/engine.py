"""Our engine on the workload's model, for benchmarks that need an engine but no trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from benchmarks.workload import Workload, lay_out
from pipeline.config.schema import Generate, Model
from pipeline.generation.vllm_engine import VllmGenerator
from pipeline.models.models import load_policy, load_tokenizer
from pipeline.records import Prompt


def open_engine(place: Path, work: Workload) -> tuple[VllmGenerator, Any, Any]:
    """Generator, trainer's model and tokenizer."""
    lay_out(place, work)
    path = str(place / "model")
    model = Model(dtype=cast(Any, work.dtype))
    generator = VllmGenerator(path, model, Generate(), max_model_len=1024)
    return generator, load_policy(path, model), load_tokenizer(path, model)


def prompts_of(place: Path, tokenizer: Any, count: int) -> list[Prompt]:
    import json

    texts = [json.loads(line)["prompt"] for line in (place / "prompts.jsonl").read_text().splitlines()][:count]
    return [Prompt(i, text, tuple(tokenizer(text)["input_ids"]), {}) for i, text in enumerate(texts)]
