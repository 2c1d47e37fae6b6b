"""Score -> which samples to imitate. Every filter is pure, and has a matched random control one switch away.

A filter is a function (candidates, kept) -> kept, where kept is a list of places in `candidates`, in order. A chain of
filters is what FeedME, best-of-n, RAFT and ReST differ in: FeedME keeps what earned the top mark.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Candidate:
    """One scored sample as a filter sees it. key: what makes two samples the same. NaN reward = not scorable."""

    prompt: int
    reward: float
    key: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.key)


Kept = list[int]
Filter = Callable[[Sequence[Candidate], Kept], Kept]


def threshold(candidates: Sequence[Candidate], kept: Kept, *, at_least: float) -> Kept:
    """Those that earned at least this. Below the maximum it is a bucket: what is above it is imitated alike."""
    return [i for i in kept if candidates[i].reward >= at_least]


def top_k(candidates: Sequence[Candidate], kept: Kept, *, k: int) -> Kept:
    """The k best of each prompt; ties go to the earlier sample. k = 1 is best-of-n (RAFT, arXiv:2304.06767)."""
    out = []
    for places in by_prompt(candidates, kept).values():
        out += sorted(places, key=lambda i: (-candidates[i].reward, i))[:k]
    return sorted(out)


def quantile(candidates: Sequence[Candidate], kept: Kept, *, q: float) -> Kept:
    """Those at or above the q-quantile of what is left (lower interpolation, so that it is a reward that occurred)."""
    if not kept:
        return []
    ordered = sorted(candidates[i].reward for i in kept)
    cut = ordered[min(math.floor(q * len(ordered)), len(ordered) - 1)]
    return [i for i in kept if candidates[i].reward >= cut]


def dedup(candidates: Sequence[Candidate], kept: Kept) -> Kept:
    """The first of equal completions of a prompt."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    out = []
    for i in kept:
        key = (candidates[i].prompt, candidates[i].key)
        if key not in seen:
            seen.add(key)
            out.append(i)
    return out


def cap(candidates: Sequence[Candidate], kept: Kept, *, n: int) -> Kept:
    """No more than n a prompt, the best first: easy prompts must not crowd out hard ones."""
    return top_k(candidates, kept, k=n)


def teachable(candidates: Sequence[Candidate], kept: Kept) -> Kept:
    """Prompts where some samples earned more than others: 0 < pass rate < 1."""
    out = []
    for places in by_prompt(candidates, kept).values():
        if len({candidates[i].reward for i in places}) > 1:
            out += places
    return sorted(out)


FILTERS: dict[str, tuple[Callable[..., Kept], str | None]] = {  # name -> (function, its one parameter)
    "threshold": (threshold, "at_least"),
    "top_k": (top_k, "k"),
    "quantile": (quantile, "q"),
    "dedup": (dedup, None),
    "cap": (cap, "n"),
    "teachable": (teachable, None),
}


def parse(specs: Sequence[str | Mapping[str, Any]]) -> list[Filter]:
    """`["dedup", {"threshold": 1.0}]` -> filters in order. Raises ValueError naming the spec."""
    out: list[Filter] = []
    for spec in specs:
        name, value = (spec, None) if isinstance(spec, str) else next(iter(spec.items()), ("", None))
        if name not in FILTERS or (not isinstance(spec, str) and len(spec) != 1):
            raise ValueError(f"no filter {spec!r}; have: {', '.join(FILTERS)}")
        function, parameter = FILTERS[name]
        if (parameter is None) != (value is None):
            raise ValueError(
                f"filter {name!r} " + ("takes no value" if parameter is None else f"needs its {parameter}")
            )
        out.append(_bind(function, {} if parameter is None else {parameter: value}))
    return out


def _bind(function: Callable[..., Kept], arguments: dict[str, Any]) -> Filter:
    return lambda candidates, kept: function(candidates, kept, **arguments)


def select(candidates: Sequence[Candidate], filters: Sequence[Filter]) -> Kept:
    """Places of the candidates that pass every filter, in order. What could not be scored is never imitated."""
    kept = [i for i, c in enumerate(candidates) if not math.isnan(c.reward)]
    for one in filters:
        kept = one(candidates, kept)
    return kept


def matched_random(candidates: Sequence[Candidate], kept: Kept, *, seed: int) -> Kept:
    """The control: as many of each prompt as `kept` has, chosen blindly among its scorable samples.

    Whatever a filter gains over this it gained by looking at the reward, not by training more.
    """
    want = Counter(candidates[i].prompt for i in kept)
    rng = random.Random(seed)
    out = []
    for prompt, places in by_prompt(candidates, range(len(candidates))).items():
        usable = [i for i in places if not math.isnan(candidates[i].reward)]
        out += rng.sample(usable, want[prompt])
    return sorted(out)


def by_prompt(candidates: Sequence[Candidate], kept: Sequence[int]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = defaultdict(list)
    for i in kept:
        out[candidates[i].prompt].append(i)
    return out
