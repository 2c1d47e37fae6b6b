"""Pushing 50M weights into the engine and verifying that they arrived, against a copy of the same bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.workload import Workload

WORK = Workload(hidden_size=640, intermediate_size=2560, layers=8, heads=10)


def run(rounds: int = 9) -> dict[str, Any]:
    import torch

    from benchmarks.engine import open_engine, prompts_of
    from pipeline.generation.generator import largest_gap
    from pipeline.generation.hf_engine import sequence_logprobs
    from pipeline.models.models import named_weights
    from pipeline.update.canary import rows_at_start

    with tempfile.TemporaryDirectory() as folder:
        generator, model, tokenizer = open_engine(Path(folder), WORK)
        rows = rows_at_start(generator, prompts_of(Path(folder), tokenizer, 64))
        sequences = [[*r.prompt_ids, *r.ids] for r in rows]
        parameters = list(model.parameters())
        buffers = [torch.empty_like(p) for p in parameters]

        def push() -> None:
            generator.sync(named_weights(model))

        def canary() -> None:
            gap = largest_gap(sequence_logprobs(model, sequences), generator.logprobs(sequences))
            assert gap < 1e-3, f"the engine holds other weights: {gap}"

        def both() -> None:
            push()
            canary()

        @torch.no_grad()
        def copy() -> None:
            for buffer, parameter in zip(buffers, parameters, strict=True):
                buffer.copy_(parameter)

        spent = in_turns({"copy": copy, "sync_and_canary": both, "sync": push, "canary": canary}, rounds=rounds)
    return {
        "ratios": {"sync_vs_copy": spent["sync_and_canary"]["cpu"] / spent["copy"]["cpu"]},
        "weights": sum(p.numel() for p in parameters),
        "seconds": spent,
        "wall_ratio": spent["sync_and_canary"]["wall"] / spent["copy"]["wall"],
        "sync_alone_vs_copy": spent["sync"]["cpu"] / spent["copy"]["cpu"],
    }
