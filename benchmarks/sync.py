"""Pushing weights into vLLM and verifying that they arrived, against a copy of the same bytes.

Of a random model of 52M weights in float32, or with MODEL=path of a pretrained model in bfloat16.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.workload import Workload

WORK = Workload(hidden_size=640, intermediate_size=2560, layers=8, heads=10)


def workload() -> Workload:
    path = os.environ.get("MODEL")
    return Workload(model_path=path, dtype="bfloat16", max_tokens=16) if path else WORK


def run(rounds: int = 9) -> dict[str, Any]:
    import torch

    from benchmarks.engine import open_engine, prompts_of
    from pipeline.models.models import named_weights
    from pipeline.update import canary
    from pipeline.update.forward import CompletionLogprobs
    from pipeline.update.learner import Inference

    work = workload()
    with tempfile.TemporaryDirectory() as folder:
        generator, model, tokenizer = open_engine(Path(folder), work)
        inference = Inference(
            CompletionLogprobs(model, temperature=1.0), None, budget=work.tokens_per_microbatch, device=model.device
        )
        rows = canary.rows_at_start(generator, prompts_of(Path(folder), tokenizer, 64))
        limit = canary.tolerance(model.dtype).most
        parameters = list(model.parameters())
        buffers = [torch.empty_like(p) for p in parameters]

        def push() -> None:
            generator.sync(named_weights(model))

        def check() -> None:
            gap = canary.measure(inference, generator, rows)
            assert gap < limit, f"the engine holds other weights: {gap}"

        def both() -> None:
            push()
            check()

        @torch.no_grad()
        def copy() -> None:
            for buffer, parameter in zip(buffers, parameters, strict=True):
                buffer.copy_(parameter)

        spent = in_turns({"copy": copy, "sync_and_canary": both, "sync": push, "canary": check}, rounds=rounds)
    name = "real_sync_vs_copy" if work.model_path else "sync_vs_copy"
    return {
        "ratios": {name: spent["sync_and_canary"]["cpu"] / spent["copy"]["cpu"]},
        "weights": sum(p.numel() for p in parameters),
        "seconds": spent,
        "wall_ratio": spent["sync_and_canary"]["wall"] / spent["copy"]["wall"],
        "sync_alone_vs_copy": spent["sync"]["cpu"] / spent["copy"]["cpu"],
    }
