"""A GRPO step on a real pretrained model, ours against stock TRL: time per sampled token, and peak memory.

8 prompts x 8 samples, or fewer prompts where the machine is slow (real_size.py), up to 48 new tokens, a reference with
its KL in the loss, as many threads as cores. Each side runs in its own process; all take turns, without a warm-up. TRL
generates with transformers and with its own vLLM, and trains in micro-batches of up to 16 rows. MODEL=path measures
another model; SIDES=ours,trl_hf measures some of the sides.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.real_model import fetch
from benchmarks.real_size import fitting, speed
from benchmarks.step import compare, ratio, summary
from benchmarks.workload import Workload

PEERS = ("trl_hf", "trl_vllm")
OURS = ("ours", "ours_transformers")
MICRO_ROWS = 16
PROMPTS = (1, 2, 4, 8)
OPERATIONS = 2e12  # per side and prompt: four times the products of 8 rows of 40 and 48 tokens


def workload(prompts: int = max(PROMPTS)) -> Workload:
    from pipeline.models.precision import multiplies_bfloat16

    return Workload(
        model_path=os.environ.get("MODEL") or str(fetch()),
        dtype="bfloat16" if multiplies_bfloat16() else "float32",
        threads=os.cpu_count() or 1,
        prompts=prompts,
        max_tokens=48,
        micro_rows=min(MICRO_ROWS, prompts * Workload().samples),
        tokens_per_microbatch=0,
    )


def run(rounds: int = 1) -> dict[str, Any]:
    import torch

    sides = tuple(os.environ.get("SIDES", ",".join((*OURS, *PEERS))).split(","))
    torch.set_num_threads(os.cpu_count() or 1)
    per_s = speed(workload().dtype)
    work = workload(fitting(PROMPTS, len(sides) * rounds * OPERATIONS, per_s))
    print(f"  {per_s / 1e9:.0f} GFLOP/s: {work.prompts} prompts", flush=True)
    steps = compare(work, sides, rounds, warmup=0, progress=True)
    return {
        **ratios(steps),
        "prompts": work.prompts,
        "speed": per_s,
        "dtype": work.dtype,
        "threads": work.threads,
        "rounds": rounds,
        "steps": summary(steps),
    }


def ratios(steps: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The figures that have a target; none where SIDES leaves out a side that they compare."""
    if not (steps.keys() & set(PEERS) and OURS[0] in steps):
        return {"ratios": {}, "wall_ratios": {}}
    return {
        "ratios": {
            "real_step_vs_trl": faster_than_the_best_peer(steps, "cpu"),
            "real_memory_vs_trl": peak(steps, OURS[:1]) / peak(steps, PEERS),
        },
        "wall_ratios": {"real_step_vs_trl": faster_than_the_best_peer(steps, "wall")},
    }


def faster_than_the_best_peer(steps: Mapping[str, Sequence[Mapping[str, float]]], clock: str) -> float:
    """The faster peer's time per token over that of our faster engine."""

    def per_token(side: str) -> float:
        return statistics.median(s[clock] / s["tokens"] for s in steps[side])

    theirs, own = (min((side for side in group if side in steps), key=per_token) for group in (PEERS, OURS))
    return ratio({"ours": steps[own], theirs: steps[theirs]}, theirs, clock)


def peak(steps: Mapping[str, Sequence[Mapping[str, float]]], sides: Sequence[str]) -> float:
    """The smallest peak of these sides, in MiB."""
    return min(max(s["peak_mib"] for s in steps[side]) for side in sides if side in steps)
