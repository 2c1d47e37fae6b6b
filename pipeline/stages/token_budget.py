"""Sampling within a token budget, which makes methods with answers of different length comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.records import Prompt, Rollout
from pipeline.stages.context import Context

SLICE = 16  # prompts per call: the budget is exceeded by less than the tokens of one slice


def sample_within(
    ctx: Context, generator: Any, requests: Sequence[Prompt], samples: int, *key: int | str, budget: int | None
) -> list[Rollout]:
    """Rollouts of `requests`, in order, until `budget` completion tokens are sampled; None: rollouts of all.

    At least one slice is sampled. The samples are a function of (seed, stage, key), whether or not the budget ends.
    """
    if budget is None:
        return ctx.sample(generator, requests, samples, *key)
    out: list[Rollout] = []
    for start in range(0, len(requests), SLICE):
        out += ctx.sample(generator, requests[start : start + SLICE], samples, *key, start)
        if sum(sum(r.mask) for r in out) >= budget:
            break
    return out
