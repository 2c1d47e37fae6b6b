"""Peak memory of whole processes that train: ours against stock TRL, each with transformers generation.

Long completions: 64 rows with a heavy tail up to 512 tokens. Large vocabulary: 32,000 tokens, where the end token never
comes by chance, so every row runs to its limit. `above_start` leaves out what a process holds before its first step.
"""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Worker
from benchmarks.workload import Workload

CASES = {
    "heavy_tail": Workload(max_tokens=512),
    "large_vocabulary": Workload(vocabulary=32_000, hidden_size=128, intermediate_size=384, layers=2, max_tokens=96,
                                 prompts=4),
}  # fmt: skip
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
            "memory_large_vocabulary_vs_trl": ratios["large_vocabulary_peak_mib"],
        },
        "all_ratios": ratios,
        "mib": found,
    }


def peak(side: str, work: Workload, steps: int) -> dict[str, float]:
    """The highest resident set of a process of its own over some steps, which are never measured side by side: two
    processes at once would press on each other's memory."""
    with Worker(side, work) as worker:
        highest = max(worker.step()["peak_mib"] for _ in range(steps))
        return {"peak_mib": highest, "above_start_mib": highest - worker.ready["peak_mib"]}
