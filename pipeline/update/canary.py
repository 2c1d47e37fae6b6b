"""The canary: after every weight sync, generator and trainer must give the same log-probs on tokens the model expects.

Rounding must not trip it and a stale tensor must. Both hang on the tokens: on tokens that no model expects, bfloat16
rounding of large logits reaches whole nats. So it compares rows of the step itself (at the start, greedy continuations
of prompts), weights each token by its probability, and takes the mean. Its limit is a multiple of the gap that was
measured before the first update, when both sides held the same checkpoint: on greedy continuations, and on the first
step's samples, which are less likely.

What it cannot see: in bfloat16, a stale tensor whose change moves log-probs by less than rounding does. Such a change
adds up over the steps until the canary, or the mismatch of the sampled tokens, shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from pipeline.config.schema import Sampling
from pipeline.distributed import ranks
from pipeline.generation.generator import Generator, Request
from pipeline.records import Prompt
from pipeline.update.forward import Row
from pipeline.update.learner import Inference

T = TypeVar("T")
ROWS = 8
TOKENS_PER_ROW = 16
TOKENS = 1024  # of all rows, prompts included: log-probs of a long prompt on a large vocabulary take gigabytes
FLOOR_FACTOR = 3.0  # between two sets of 100 tokens the mean gap of equal weights differs by up to 1.5


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Of the canary's gap, in nats. least: allowed however small the floor is; most: beyond it no rounding explains
    the gap, so it also bounds the floor itself."""

    least: float
    most: float

    def limit(self, floor: float) -> float:
        """What a gap may be where equal weights had a gap of `floor`; NaN: not measured yet."""
        return self.most if math.isnan(floor) else min(max(self.least, FLOOR_FACTOR * floor), self.most)


TOLERANCES = {
    torch.float32: Tolerance(1e-4, 1e-3),
    torch.bfloat16: Tolerance(0.02, 0.25),
    torch.float16: Tolerance(5e-3, 0.05),
}


def tolerance(precision: torch.dtype, fixed: float | None = None) -> Tolerance:
    """fixed: `generate.canary_tolerance`, a limit that does not follow the floor."""
    return TOLERANCES.get(precision, TOLERANCES[torch.bfloat16]) if fixed is None else Tolerance(fixed, fixed)


def rows_at_start(generator: Generator, prompts: Sequence[Prompt]) -> list[Row]:
    """Greedy continuations of prompts that stand far apart in the data."""
    chosen = _spread(prompts)
    requests = [Request(p.ids, number, TOKENS_PER_ROW) for number, p in enumerate(chosen)]
    # no end token is named, for what a model expects after one is as good; an engine wants one id to stop at
    samples = generator.sample(requests, Sampling(top_k=1, max_tokens=TOKENS_PER_ROW), frozenset({0}))
    rows = [Row(p.ids, s.ids, (True,) * len(s.ids)) for p, s in zip(chosen, samples, strict=True)]
    return _within_budget(rows)


def rows_of_step(rows: Sequence[Row]) -> list[Row]:
    """The start of some of a step's completions."""
    short = [Row(r.prompt_ids, r.ids[:TOKENS_PER_ROW], r.mask[:TOKENS_PER_ROW]) for r in rows]
    return _within_budget(_spread([r for r in short if any(r.mask)]))


def _spread(items: Sequence[T]) -> list[T]:
    return [items[len(items) * k // ROWS] for k in range(ROWS)] if len(items) > ROWS else list(items)


def _within_budget(rows: Sequence[Row]) -> list[Row]:
    """Shortest first, at least one."""
    out: list[Row] = []
    total = 0
    for row in sorted(rows, key=len):
        total += len(row)
        if out and total > TOKENS:
            break
        out.append(row)
    return out


def measure(inference: Inference, generator: Generator, rows: Sequence[Row]) -> float:
    """The largest gap of any rank: each has a generator of its own."""
    ours = inference.logprobs(rows, temperature=1.0)
    theirs = generator.logprobs([[*r.prompt_ids, *r.ids] for r in rows])
    pairs = [
        (float(a), b)
        for row, mine, other in zip(rows, ours, theirs, strict=True)
        for a, b, sampled in zip(mine, other[len(row.prompt_ids) - 1 :], row.mask, strict=True)
        if sampled
    ]
    return float(torch.tensor(ranks.gather([weighted_gap(pairs)])).max())


def weighted_gap(pairs: Sequence[tuple[float, float]]) -> float:
    """Mean |log p - log q| of (log p, log q) in nats, weighted by p; NaN where either holds one or none is given."""
    if not pairs:
        return math.nan
    p, q = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    weights = (p - p.max()).exp()  # of p relative to the largest, so that none underflows
    return float((weights * (p - q).abs()).sum() / weights.sum())
