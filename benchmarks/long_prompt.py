"""The same step with 256-token prompts shared by groups of 8: ours computes a prompt once, TRL once per completion."""

from __future__ import annotations

from typing import Any

from benchmarks.step import compare, equal_learning, ratio, summary
from benchmarks.workload import Workload

WORK = Workload(prompt_tokens=256)
NAME = "step_long_prompt_vs_trl_vllm"


def run(rounds: int = 7) -> dict[str, Any]:
    learning = equal_learning(WORK)
    steps = compare(WORK, ("ours", "trl_vllm"), rounds)
    return {
        "ratios": {NAME: ratio(steps, "trl_vllm")},
        "wall_ratios": {NAME: ratio(steps, "trl_vllm", "wall")},
        "equal_learning": learning,
        "rounds": rounds,
        "steps": summary(steps),
    }
