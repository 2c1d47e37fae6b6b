"""Reward -> bin -> condition token. The model is told which reward to reach, in plain text, and learns to reach it.

Decision Transformer (arXiv:2106.01345) with the return as text; Quark's quantile bins (arXiv:2205.13636); SteerLM's
attributes as text (arXiv:2310.05344). Labels are text of the existing vocabulary, so no embedding is new, any server
can be asked, and nothing is stripped from what it answers.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import defaultdict
from collections.abc import Sequence


def quantile_edges(rewards: Sequence[float], count: int) -> list[float]:
    """Edges that cut the rewards into at most `count` bins of about equal size; equal rewards share a bin.

    Raises ValueError where fewer than two bins are left: one label teaches nothing.
    """
    ordered = sorted(r for r in rewards if not math.isnan(r))
    if not ordered:
        raise ValueError("no scorable sample to make bins from")
    cuts = [ordered[min(len(ordered) * i // count, len(ordered) - 1)] for i in range(1, count)]
    edges = sorted({c for c in cuts if c > ordered[0]})
    if not edges:
        raise ValueError(f"all rewards are {ordered[0]}: nothing to condition on; give samples of different reward")
    return edges


def bin_of(reward: float, edges: Sequence[float]) -> int:
    """0 for the worst bin, len(edges) for the best; a reward on an edge is in the bin above."""
    return bisect.bisect_right(edges, reward)


def label_text(template: str, bin_number: int) -> str:
    """`<{bin}> ` -> `<4> `. Raises ValueError where the template does not show the bin."""
    if "{bin}" not in template:
        raise ValueError(f"label {template!r} must hold {{bin}}")
    return template.replace("{bin}", str(bin_number))


def balanced(bins: Sequence[int], *, per_bin: int, seed: int) -> list[int]:
    """Places, per_bin of every bin that occurs, shuffled; small bins repeat whole before any sample a second time.

    Unbalanced, the model learns which reward is frequent instead of what the label says.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(bins):
        places[number].append(place)
    rng = random.Random(seed)
    out = []
    for number in sorted(places):
        pool: list[int] = []
        while len(pool) < per_bin:
            pool += rng.sample(places[number], len(places[number]))
        out += pool[:per_bin]
    rng.shuffle(out)
    return out


def dropped(n: int, share: float, *, seed: int) -> list[bool]:
    """True where the label is left off, so that one model also answers unasked."""
    rng = random.Random(seed)
    return [rng.random() < share for _ in range(n)]


def shuffled(bins: Sequence[int], *, seed: int) -> list[int]:
    """The control: the same labels on other samples. Control that survives this was never control."""
    out = list(bins)
    random.Random(seed).shuffle(out)
    return out
