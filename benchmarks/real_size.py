"""Workloads of the real model, sized for this machine, so that each benchmark ends within minutes.

Matrix products are timed for a moment; a workload that would take longer than BUDGET_S at that speed is made smaller.
Each result names the size that it was measured at, and `speed` in operations per second.
"""

from __future__ import annotations

import time

BUDGET_S = 200.0
TIMED_S = 0.5
TOKENS, WIDTH, OUTPUTS = 256, 640, 1 << 15


def speed(dtype: str) -> float:
    """Floating-point operations per second of matrix products of the head's shape in this dtype, on torch's threads."""
    import torch

    left = torch.randn(TOKENS, WIDTH).to(getattr(torch, dtype))
    right = torch.randn(WIDTH, OUTPUTS).to(left.dtype)
    left @ right  # warm-up
    times, started = 0, time.perf_counter()
    while time.perf_counter() - started < TIMED_S:
        left @ right
        times += 1
    return 2.0 * TOKENS * WIDTH * OUTPUTS * times / (time.perf_counter() - started)


def fitting(sizes: tuple[int, ...], operations_each: float, speed: float, budget_s: float = BUDGET_S) -> int:
    """The largest size whose operations take no longer than the budget at this speed; else the smallest."""
    return max((n for n in sizes if n * operations_each <= budget_s * speed), default=min(sizes))
