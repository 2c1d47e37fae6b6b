"""Score -> which samples to imitate. Every filter is pure, and has a matched random control one switch away.

A filter takes candidates and the indices that are still in, and returns the indices it keeps, in order. Methods differ
in their chain of filters: FeedME keeps what earned the top mark, best-of-n (RAFT, arXiv:2304.06767) the
best of each prompt, ReST (arXiv:2308.08998) what passes a rising threshold, RFT (arXiv:2308.01825) what is right and
differs. `pipeline.credit.filter_lint` reports beforehand what a chain can and cannot reach.
"""

from __future__ import annotations

import inspect
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Candidate:
    """One scored sample as a filter sees it. key: what makes two samples the same. NaN reward = not scorable. passed:
    None where a checker broke, one of weight 0 too."""

    prompt: int
    reward: float
    key: tuple[int, ...]
    passed: bool | None = True

    @property
    def length(self) -> int:
        return len(self.key)

    @property
    def scorable(self) -> bool:
        return not math.isnan(self.reward)


@dataclass(frozen=True, slots=True)
class FilterRound:
    """The round in which a filter runs: rising ones depend on it, random ones on (seed, round) and nothing else."""

    number: int = 0
    seed: int = 0

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{name}")


Kept = list[int]
Filter = Callable[[Sequence[Candidate], Kept, FilterRound], Kept]


# --- by score ----------------------------------------------------------------------------------------------------


def threshold(
    candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, at_least: float, rise: float = 0.0
) -> Kept:
    """Those that earned at least this, `rise` more each round. Below the maximum it is a bucket: everything above it is
    imitated alike."""
    limit = at_least + rise * turn.number
    return [i for i in kept if candidates[i].reward >= limit]


def quantile(candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, q: float, rise: float = 0.0) -> Kept:
    """Those at or above the q-quantile of what is left, a reward that occurred; `rise` higher each round."""
    if not kept:
        return []
    ordered = sorted(candidates[i].reward for i in kept)
    index = math.floor(min(q + rise * turn.number, 1.0) * len(ordered))
    limit = ordered[min(index, len(ordered) - 1)]
    return [i for i in kept if candidates[i].reward >= limit]


def top_k(candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, k: int) -> Kept:
    """The k best of each prompt; ties go to the earlier sample."""
    return _best(candidates, kept, k, lambda i: -candidates[i].reward)


def best_of_n(candidates: Sequence[Candidate], kept: Kept, turn: FilterRound) -> Kept:
    """The best of each prompt's samples (RAFT)."""
    return top_k(candidates, kept, turn, k=1)


def cap(candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, n: int) -> Kept:
    """At most n per prompt, the best first: easy prompts must not crowd out hard ones."""
    return top_k(candidates, kept, turn, k=n)


def correct_shortest(candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, k: int = 1) -> Kept:
    """Of those the verifier passed, the k shortest of each prompt."""
    right = [i for i in kept if candidates[i].passed]
    return _best(candidates, right, k, lambda i: candidates[i].length)


# --- at random, better ones with higher probability ----------------------------------------------------------------


def softmax(
    candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, n: int, temperature: float = 0.25
) -> Kept:
    """n of each prompt, drawn without replacement with weights exp(reward / temperature)."""
    return _drawn(candidates, kept, n, turn.rng("softmax"), lambda i: candidates[i].reward / temperature)


def reward_weighted(candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, n: int) -> Kept:
    """n of each prompt, drawn without replacement with weights reward - lowest reward of all; the lowest never."""
    low = min((candidates[i].reward for i in kept), default=0.0)
    above = [i for i in kept if candidates[i].reward > low]
    rng = turn.rng("reward_weighted")
    return _drawn(candidates, above, n, rng, lambda i: math.log(candidates[i].reward - low))


def monotone(candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, power: float = 1.0) -> Kept:
    """Each with probability ((reward - lowest) / (highest - lowest)) ** power: better is always likelier, so
    rounds keep improving where a bucket stops at its own mean. Keeps all if all earned the same."""
    if not kept:
        return []
    rewards = [candidates[i].reward for i in kept]
    low, spread = min(rewards), max(rewards) - min(rewards)
    rng = turn.rng("monotone")
    draws = [rng.random() for _ in kept]
    return [i for i, u in zip(kept, draws, strict=True) if not spread
            or u < ((candidates[i].reward - low) / spread) ** power]  # fmt: skip


# --- by prompt and by similarity -------------------------------------------------------------------------------------


def dedup(
    candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, ngram: int = 0, at_most: float = 0.8
) -> Kept:
    """The first of equal completions of a prompt; with ngram also the first of those whose sets of n-grams overlap by
    more than at_most (Jaccard)."""
    out: Kept = []
    for indices in by_prompt(candidates, kept).values():
        shown: list[frozenset[tuple[int, ...]]] = []
        seen: set[tuple[int, ...]] = set()
        for i in indices:
            key = candidates[i].key
            if key in seen:
                continue
            seen.add(key)
            if ngram:
                grams = ngrams(key, ngram)
                if any(jaccard(grams, other) > at_most for other in shown):
                    continue
                shown.append(grams)
            out.append(i)
    return sorted(out)


def teachable(
    candidates: Sequence[Candidate], kept: Kept, turn: FilterRound, *, low: float = 0.0, high: float = 1.0
) -> Kept:
    """Prompts with low < pass rate < high among all their scorable samples: neither hopeless nor mastered."""
    rates = pass_rates(candidates)
    return [i for i in kept if low < rates[candidates[i].prompt] < high]


# --- parts ---------------------------------------------------------------------------------------------------------


def ngrams(key: Sequence[int], n: int) -> frozenset[tuple[int, ...]]:
    """All runs of n tokens; a shorter key is one gram, itself."""
    return frozenset(tuple(key[i : i + n]) for i in range(max(len(key) - n + 1, 1)))


def jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def pass_rates(candidates: Sequence[Candidate]) -> dict[int, float]:
    """Share of passes among each prompt's samples whose checkers all worked; prompts without any are left out."""
    judged = by_prompt(candidates, [i for i, c in enumerate(candidates) if c.scorable and c.passed is not None])
    return {prompt: sum(bool(candidates[i].passed) for i in indices) / len(indices)
            for prompt, indices in judged.items()}  # fmt: skip


def by_prompt(candidates: Sequence[Candidate], kept: Sequence[int]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = defaultdict(list)
    for i in kept:
        out[candidates[i].prompt].append(i)
    return out


def _best(candidates: Sequence[Candidate], kept: Kept, k: int, cost: Callable[[int], float]) -> Kept:
    out: Kept = []
    for indices in by_prompt(candidates, kept).values():
        out += sorted(indices, key=lambda i: (cost(i), i))[:k]
    return sorted(out)


def _drawn(
    candidates: Sequence[Candidate], kept: Kept, n: int, rng: random.Random, log_weight: Callable[[int], float]
) -> Kept:
    """n of each prompt without replacement, by the largest log-weight + Gumbel noise (arXiv:1903.06059)."""
    noise = {i: -math.log(-math.log(rng.random() or 1e-300)) for i in kept}
    return _best(candidates, kept, n, lambda i: -(log_weight(i) + noise[i]))


# --- chains --------------------------------------------------------------------------------------------------------

FILTERS: dict[str, Callable[..., Kept]] = {
    f.__name__: f
    for f in (
        threshold, quantile, top_k, best_of_n, cap, correct_shortest,
        softmax, reward_weighted, monotone,
        dedup, teachable,
    )
}  # fmt: skip
INTEGERS = {"k", "n", "ngram"}  # parameters that are whole numbers
RANGES: dict[str, tuple[float, float]] = {
    "k": (1, math.inf),
    "n": (1, math.inf),
    "ngram": (0, math.inf),
    "q": (0, 1),
    "temperature": (1e-6, math.inf),
    "power": (0, math.inf),
    "at_most": (0, 1),
    "low": (0, 1),
    "high": (0, 1),
}


def parse(specs: Sequence[str | Mapping[str, Any]]) -> list[Filter]:
    """`["dedup", {"threshold": 1.0}, {"softmax": {"n": 4, "temperature": 0.2}}]` -> filters, in order.

    A bare value is the filter's first parameter. Raises ValueError naming the filter, its parameter and the fix.
    """
    return [_parse_one(spec) for spec in specs]


def _parse_one(spec: str | Mapping[str, Any]) -> Filter:
    if not isinstance(spec, str) and len(spec) != 1:
        raise ValueError(f"a filter is a name or one {{name: value}}, found {spec!r}")
    name, value = (spec, None) if isinstance(spec, str) else next(iter(spec.items()))
    if name not in FILTERS:
        raise ValueError(f"no filter {name!r}; have: {', '.join(FILTERS)}")
    function = FILTERS[name]
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if value is None:
        given: dict[str, Any] = {}
    elif isinstance(value, Mapping):
        given = dict(value)
    elif known:
        given = {next(iter(known)): value}
    else:
        raise ValueError(f"filter {name!r} takes no value, found {value!r}")
    for key, number in given.items():
        if key not in known:
            raise ValueError(f"filter {name!r} has no parameter {key!r}; have: {', '.join(known) or 'none'}")
        _check_number(name, key, number)
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise ValueError(f"filter {name!r} needs {missing[0]}, as in {{{name}: {{{missing[0]}: ...}}}}")
    return lambda candidates, kept, turn: function(candidates, kept, turn, **given)


def _check_number(name: str, key: str, value: Any) -> None:
    kind = "a whole number" if key in INTEGERS else "a number"
    right = isinstance(value, int if key in INTEGERS else (int, float)) and not isinstance(value, bool)
    low, high = RANGES.get(key, (-math.inf, math.inf))
    if not right or not low <= value <= high:
        bounds = f" from {low:g} to {high:g}" if high < math.inf else f" of at least {low:g}" if low > -math.inf else ""
        raise ValueError(f"filter {name!r}: {key} must be {kind}{bounds}, found {value!r}")


def select(candidates: Sequence[Candidate], filters: Sequence[Filter], turn: FilterRound | None = None) -> Kept:
    """Indices of the candidates that pass every filter, in order. Unscorable samples are never imitated."""
    kept = [i for i, c in enumerate(candidates) if c.scorable]
    for one in filters:
        kept = one(candidates, kept, turn or FilterRound())
    return kept


def blind(candidates: Sequence[Candidate], counts: Mapping[int, int], *, seed: int) -> Kept:
    """counts[prompt] of each prompt's scorable samples, or all if there are fewer, chosen without their reward."""
    rng = random.Random(seed)
    out = []
    for prompt, indices in by_prompt(candidates, range(len(candidates))).items():
        usable = [i for i in indices if candidates[i].scorable]
        out += rng.sample(usable, min(counts.get(prompt, 0), len(usable)))
    return sorted(out)
