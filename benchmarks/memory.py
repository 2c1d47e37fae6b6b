"""Peak memory of whole training processes: ours against stock TRL, each with transformers generation.

Small: 64 rows with heavy-tailed lengths up to 512 tokens, 3.4M weights. Large: 16 rows, 51M weights and a vocabulary of
32,000 tokens, in which the end token never comes by chance, so every row has 512 tokens; also with heavy-tailed lengths
of mean 100. `above_start` excludes what a process holds before its first step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.bench_worker import SideProcess
from benchmarks.workload import Workload

LARGE = Workload(
    hidden_size=512, intermediate_size=1536, layers=10, heads=8, vocabulary=32_000, max_tokens=512, prompts=4, samples=4
)
CASES = {
    "heavy_tail": Workload(max_tokens=512),
    "large": LARGE,
    "large_heavy_tail": replace(LARGE, mean_tokens=100),
}
SIDES = ("ours_transformers", "trl_hf")


def run(rounds: int = 2) -> dict[str, Any]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case, work in CASES.items():
        found[case] = {side: peak(side, work, rounds) for side in SIDES}
    ratios = {
        f"{case}_{name}": sides["ours_transformers"][name] / sides["trl_hf"][name]
        for case, sides in found.items()
        for name in ("peak_mib", "above_start_mib")
    }
    return {
        "ratios": {
            "memory_vs_trl": ratios["heavy_tail_peak_mib"],
            "memory_large_vs_trl": ratios["large_peak_mib"],
            "memory_large_heavy_tail_vs_trl": ratios["large_heavy_tail_peak_mib"],
        },
        "all_ratios": ratios,
        "mib": found,
    }


def peak(side: str, work: Workload, steps: int) -> dict[str, float]:
    """Peak resident set of a separate process over some steps. Sides never run concurrently: two processes at once
    would compete for memory."""
    with SideProcess(side, work) as worker:
        highest = max(worker.step()["peak_mib"] for _ in range(steps))
        return {"peak_mib": highest, "above_start_mib": highest - worker.ready["peak_mib"]}
