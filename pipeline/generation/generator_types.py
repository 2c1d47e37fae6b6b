"""What goes into a generator and comes out: requests, samples, and the protocol that every engine implements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.config.schema import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    ids: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """ids: sampled ids with the end token where one came. logprobs: nats, one per id."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


OnDone = Callable[[int, Sample], None]


class Generator(Protocol):
    @property
    def name(self) -> str:
        """`vllm` or `transformers`."""
        ...

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        """One sample per request, in order. on_done gets (index, sample) of each as soon as it is drawn; after a
        restart of the engine it gets some twice."""
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-prob of every id but the first, at temperature 1, as this generator computes it."""
        ...

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load these weights. Names are a checkpoint's, the tied head's included."""
        ...
