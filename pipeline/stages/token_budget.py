"""Sampling within a budget of tokens: what makes methods comparable that sample answers of different length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.records import Prompt, Rollout
from pipeline.stages.context import Context

SLICE = 16  # prompts at once: a budget is overshot by less than what they take


def sample_within(
    ctx: Context, generator: Any, asked: Sequence[Prompt], samples: int, *key: int | str, budget: int | None
) -> list[Rollout]:
    """Rollouts of `asked` in their order until `budget` completion tokens are sampled; None: of all.

    At least one slice is sampled. What is sampled is a function of (seed, stage, key) with or without a budget's end.
    """
    if budget is None:
        return ctx.sample(generator, asked, samples, *key)
    out: list[Rollout] = []
    for place in range(0, len(asked), SLICE):
        out += ctx.sample(generator, asked[place : place + SLICE], samples, *key, place)
        if sum(len(r.ids) for r in out) >= budget:
            break
    return out
