"""Which prompts a step samples: each in turn, by how hard they are for the policy, or from several sources by ratio.

Pure functions of the seed, of how many prompts were drawn before, and of the pass rates that difficulty.jsonl records,
so that a resumed run draws the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.seeds import cycle_indices, rng

Rate = tuple[float, float]  # discounted numbers of passes and of samples of one prompt
Rates = dict[int, Rate]  # position of the prompt -> its rate


def observe(rate: Rate | None, *, passed: int, samples: int, discount: float) -> Rate:
    """The rate after one more group of a prompt's samples; earlier groups count `discount` times as much."""
    passes, count = rate or (0.0, 0.0)
    return discount * passes + passed, discount * count + samples


def weight(rate: Rate | None, *, floor: float) -> float:
    """Relative chance of a prompt: 1 if it was never sampled, else floor + (1 - floor) * 4 p (1 - p), p its pass rate.

    4 p (1 - p) is the variance of the reward of a prompt that passes with probability p, at most 1: a group that always
    passes or always fails gives no advantage. p is (passes + 1) / (samples + 2), so that one group decides little.
    """
    if rate is None:
        return 1.0
    p = (rate[0] + 1) / (rate[1] + 2)
    return floor + (1 - floor) * 4 * p * (1 - p)


def draw(indices: Sequence[int], weights: Sequence[float], count: int, *key: int | str) -> list[int]:
    """`count` of the indices at random by weight, without replacement; all of them again where there are fewer.

    Source: Efraimidis and Spirakis (2006): the largest u^(1/w), u uniform.
    """
    out: list[int] = []
    while len(out) < count:
        uniform = rng(*key, "draw", len(out)).random(len(indices))
        keys = [math.log(max(u, 1e-300)) / w for u, w in zip(uniform, weights, strict=True)]
        order = sorted(range(len(indices)), key=lambda i: (-keys[i], indices[i]))
        out += [indices[i] for i in order[: count - len(out)]]
    return out


def quotas(ratios: Mapping[str, float], drawn: Mapping[str, int], count: int) -> dict[str, int]:
    """Source -> prompts to draw now: one after another from the source that is furthest behind its ratio.

    drawn: source -> prompts drawn before. Over any number of steps the totals keep to the ratios within one prompt per
    source.
    """
    scale, total = math.fsum(ratios.values()), sum(drawn.values())
    now = dict.fromkeys(ratios, 0)
    for number in range(count):
        behind = {n: r / scale * (total + number + 1) - drawn.get(n, 0) - now[n] for n, r in ratios.items()}
        now[max(behind, key=lambda name: behind[name])] += 1
    return now


def next_indices(
    sources: Mapping[str, Sequence[int]], ratios: Mapping[str, float], rates: Rates | None, *, drawn: Mapping[str, int],
    count: int, floor: float, key: Sequence[int | str],
) -> dict[str, list[int]]:  # fmt: skip
    """Source -> indices of the prompts to sample next.

    sources: name -> indices of its prompts. rates: None walks through each source, every pass in a new order; else
    prompts are drawn by `weight`. drawn: source -> prompts drawn from it before.
    """
    out: dict[str, list[int]] = {}
    for name, now in quotas(ratios, drawn, count).items():
        indices, before, own = sources[name], drawn.get(name, 0), (*key, "order", *([name] if name else []))
        if rates is None:
            out[name] = [indices[i] for i in cycle_indices(len(indices), before, now, *own)]
        else:
            out[name] = draw(indices, [weight(rates.get(i), floor=floor) for i in indices], now, *own, before)
    return out
