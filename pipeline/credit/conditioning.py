"""Reward -> bin -> condition label. A label in the prompt says which reward to reach; the model learns to reach it.

Decision Transformer (arXiv:2106.01345) with the return as text; Quark's quantile bins (arXiv:2205.13636); SteerLM's
attributes as text (arXiv:2310.05344). Labels are text of the existing vocabulary: no new embeddings, any server
can be used, and nothing has to be stripped from its answers.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

Cell = TypeVar("Cell", int, tuple[int, ...])


@dataclass(frozen=True, slots=True)
class Axis:
    """One attribute of a label: `edges` divide its values into bins, `label` shows the bin's number, or its word.

    of: what is measured; per_prompt: minus the mean of the prompt's samples. seen: samples per bin in training.
    promised: the mean value of each bin's samples, NaN where none fell.
    """

    name: str
    edges: tuple[float, ...]
    label: str
    of: str = "reward"
    prefer: Literal["high", "low"] = "high"
    per_prompt: bool = False
    seen: tuple[int, ...] = ()
    promised: tuple[float, ...] = ()
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "{bin}" not in self.label:
            raise ValueError(f"label {self.label!r} must hold {{bin}}")
        if self.words and len(self.words) != self.count:
            raise ValueError(
                f"words {list(self.words)}: {len(self.edges)} edges make {self.count} bins; give each a word"
            )
        if len(set(self.words)) != len(self.words):
            raise ValueError(
                f"words {list(self.words)}: two bins have the same word, so a label cannot tell them apart"
            )

    @property
    def count(self) -> int:
        return len(self.edges) + 1

    @property
    def best(self) -> int:
        """The preferred end of the bins that hold training samples."""
        bins = [i for i in range(self.count) if not self.seen or self.seen[i]]
        return max(bins) if self.prefer == "high" else min(bins)

    @property
    def beyond(self) -> int:
        """One bin past the preferred end of all bins: nothing was trained there."""
        return self.count if self.prefer == "high" else -1

    def bin_of(self, value: float) -> int:
        return bin_of(value, self.edges)

    def text(self, number: int) -> str:
        word = self.words[number] if 0 <= number < len(self.words) else str(number)
        return self.label.replace("{bin}", word)

    def bounds(self, number: int) -> list[float | None]:
        """The bin's bounds; None on an open side."""
        return [self.edges[number - 1] if number else None, self.edges[number] if number < len(self.edges) else None]

    def fitted(self, values: Sequence[float]) -> Axis:
        """The same axis with the samples of each bin counted."""
        per_bin: list[list[float]] = [[] for _ in range(self.count)]
        for value in values:
            per_bin[self.bin_of(value)].append(value)
        promised = tuple(math.fsum(v) / len(v) if v else math.nan for v in per_bin)
        return replace(self, seen=tuple(map(len, per_bin)), promised=promised)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Every attribute that can be requested. A request is {axis: bin}; an axis left out is left to the model."""

    axes: tuple[Axis, ...]

    @property
    def main(self) -> Axis:
        return self.axes[0]

    @property
    def best(self) -> dict[str, int]:
        return {axis.name: axis.best for axis in self.axes}

    def axis(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise ValueError(f"no attribute {name!r} can be requested; have: {', '.join(a.name for a in self.axes)}")

    def text(self, requested: Mapping[str, int]) -> str:
        """The label in front of the prompt: the parts of the requested axes, in the order of the axes."""
        for name in requested:
            self.axis(name)
        return "".join(axis.text(requested[axis.name]) for axis in self.axes if axis.name in requested)

    def parse(self, ask: str) -> dict[str, int]:
        """`best`, `none`, `4`, or `correct=1 length=0` -> the request. Raises ValueError listing the choices."""
        words = ask.split()
        if words == ["best"]:
            return self.best
        if not words or words == ["none"]:
            return {}
        out: dict[str, int] = {}
        for word in words:
            name, equals, number = word.rpartition("=")
            axis = self.axis(name) if equals else self.main
            value = str(axis.best) if number == "best" else number
            if not value.isdigit():
                raise ValueError(f"{word!r} cannot be requested; give best, none, a bin from 0 to {axis.count - 1}, or "
                                 f"{axis.name}=BIN")  # fmt: skip
            out[axis.name] = int(value)
        return out

    def warnings(self, requested: Mapping[str, int]) -> list[str]:
        """Requests beyond the training data: extrapolation has failed wherever it was measured."""
        out = []
        for name, number in requested.items():
            axis = self.axis(name)
            if not 0 <= number < axis.count:
                out.append(f"{name}={number} is beyond the bins trained, 0 to {axis.count - 1}: the answer is a guess")
            elif axis.seen and not axis.seen[number]:
                out.append(f"{name}={number}: no training sample is in this bin; the answer is a guess")
        return out

    def as_json(self) -> dict[str, Any]:
        return {"axes": [{**asdict(a), "promised": [None if math.isnan(p) else p for p in a.promised]}
                         for a in self.axes]}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Conditions:
        return cls(tuple(
            Axis(a["name"], tuple(a["edges"]), a["label"], a["of"], a["prefer"], bool(a.get("per_prompt")),
                 tuple(a["seen"]), tuple(math.nan if p is None else p for p in a["promised"]),
                 tuple(a.get("words", ()))) for a in data["axes"]
        ))  # fmt: skip


def quantile_edges(rewards: Sequence[float], count: int) -> list[float]:
    """Edges that divide the rewards into at most `count` bins of about equal size; equal rewards share a bin.

    Raises ValueError if fewer than two bins are left: a single label carries no information.
    """
    ordered = sorted(r for r in rewards if not math.isnan(r))
    if not ordered:
        raise ValueError("no scorable sample to make bins from")
    cuts = [ordered[min(len(ordered) * i // count, len(ordered) - 1)] for i in range(1, count)]
    edges = sorted({c for c in cuts if c > ordered[0]})
    if not edges:
        raise ValueError(f"all rewards are {ordered[0]}: nothing to condition on; provide samples of different reward")
    return edges


def bin_of(reward: float, edges: Sequence[float]) -> int:
    """0 for the worst bin, len(edges) for the best; a reward on an edge is in the bin above."""
    return bisect.bisect_right(edges, reward)


def from_prompt_mean(values: Sequence[float], prompts: Sequence[int]) -> list[float]:
    """Each value minus the mean of its prompt: long for this question, not in general."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for value, prompt in zip(values, prompts, strict=True):
        by_prompt[prompt].append(value)
    means = {prompt: math.fsum(v) / len(v) for prompt, v in by_prompt.items()}
    return [value - means[prompt] for value, prompt in zip(values, prompts, strict=True)]


def balanced(cells: Sequence[Cell], *, per_bin: int, seed: int) -> list[int]:
    """Indices, per_bin of every bin (or combination of bins) that occurs, shuffled. A small bin is repeated as a whole
    before any of its samples occurs a second time.

    Unbalanced, the model learns which reward is frequent instead of what the label says.
    """
    indices: dict[Cell, list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        indices[cell].append(index)
    rng = random.Random(seed)
    out = []
    for cell in sorted(indices):
        pool: list[int] = []
        while len(pool) < per_bin:
            pool += rng.sample(indices[cell], len(indices[cell]))
        out += pool[:per_bin]
    rng.shuffle(out)
    return out


def some_dropped(requested: Mapping[str, int], share: float, rng: random.Random) -> dict[str, int]:
    """A label of several parts after label dropout: nothing with probability `share`, else each part is dropped with
    that probability too, so that any of them can be requested alone."""
    if rng.random() < share:
        return {}
    return {name: number for name, number in requested.items() if len(requested) == 1 or rng.random() >= share}


def shuffled(cells: Sequence[Cell], *, seed: int) -> list[Cell]:
    """The control: the same labels on other samples. An effect that survives this is not one of the labels."""
    out = list(cells)
    random.Random(seed).shuffle(out)
    return out


def calibration_error(obtained: Sequence[float], promised: Sequence[float]) -> float:
    """Mean |obtained - promised| over bins whose promise is known; NaN if none is."""
    gaps = [abs(o - p) for o, p in zip(obtained, promised, strict=True) if not math.isnan(p)]
    return math.fsum(gaps) / len(gaps) if gaps else math.nan
