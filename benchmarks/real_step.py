"""A GRPO step on a real pretrained model, ours against stock TRL: time per sampled token, and peak memory.

8 prompts x 8 samples, up to 48 new tokens, a reference with its KL in the loss, as many threads as cores. Each side
runs in its own process; all take turns. TRL generates with transformers and with its own vLLM, and trains in
micro-batches of 16 rows. MODEL=path measures another model.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.real_model import fetch
from benchmarks.step import compare, ratio, summary
from benchmarks.workload import Workload

PEERS = ("trl_hf", "trl_vllm")
MICRO_ROWS = 16


def workload() -> Workload:
    from pipeline.models.precision import multiplies_bfloat16

    return Workload(
        model_path=os.environ.get("MODEL") or str(fetch()),
        dtype="bfloat16" if multiplies_bfloat16() else "float32",
        threads=os.cpu_count() or 1,
        max_tokens=48,
        micro_rows=MICRO_ROWS,
        tokens_per_microbatch=0,
    )


def run(rounds: int = 3) -> dict[str, Any]:
    work = workload()
    steps = compare(work, ("ours", "ours_transformers", *PEERS), rounds)
    return {
        "ratios": {
            "real_step_vs_trl": faster_than_the_best_peer(steps, "cpu"),
            "real_memory_vs_trl": peak(steps, ("ours",)) / peak(steps, PEERS),
        },
        "wall_ratios": {"real_step_vs_trl": faster_than_the_best_peer(steps, "wall")},
        "dtype": work.dtype,
        "threads": work.threads,
        "rounds": rounds,
        "steps": summary(steps),
    }


def faster_than_the_best_peer(steps: Mapping[str, Sequence[Mapping[str, float]]], clock: str) -> float:
    """The faster peer's time per token over that of our faster engine."""
    theirs = min(PEERS, key=lambda side: statistics.median(s[clock] / s["tokens"] for s in steps[side]))
    own = min(("ours", "ours_transformers"), key=lambda side: statistics.median(s[clock] / s["tokens"]
                                                                                for s in steps[side]))  # fmt: skip
    return ratio({"ours": steps[own], theirs: steps[theirs]}, theirs, clock)


def peak(steps: Mapping[str, Sequence[Mapping[str, float]]], sides: Sequence[str]) -> float:
    """The smallest peak of these sides, in MiB."""
    return min(max(s["peak_mib"] for s in steps[side]) for side in sides)
