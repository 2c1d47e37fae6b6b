"""A generator that is opened when it is needed and opened again once when it dies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.distributed import ranks
from pipeline.generation.engines import close_generators, open_generator
from pipeline.generation.generator import Generator, OnDone, Request, Sample
from verifiers._secrets import hidden

T = TypeVar("T")


class Reliable:
    """A generator opened on first use, and opened again once for a call in which it dies: same requests, same samples.
    Of several ranks none opens its own again: the run ends, and goes on from its checkpoint.

    weights: what a policy in training sends with each sync, for an engine that starts anew in the midst of it; without
    it the model at model_dir is what the engine holds. on_open is told which generator it is.
    """

    def __init__(
        self,
        model_dir: str,
        model: Model,
        generate: Generate,
        *,
        max_model_len: int,
        on_open: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._open = lambda: open_generator(
            model_dir, model, generate, max_model_len=max_model_len, owner=self, weights=self.weights
        )
        self._on_open = on_open
        self.weights: Callable[[], Iterable[tuple[str, torch.Tensor]]] | None = None

    @property
    def name(self) -> str:
        return self._engine().name

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, ends: frozenset[int], on_done: OnDone | None = None
    ) -> list[Sample]:
        """Of several ranks each samples its share with an engine of its own, and all get every sample; on_done is told
        of them only where there is one."""
        if on_done is not None and ranks.world() == 1:
            return self._twice(lambda engine: engine.sample(requests, sampling, ends, on_done))
        return ranks.mapped(lambda mine: self._twice(lambda engine: engine.sample(mine, sampling, ends)), requests)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._twice(lambda engine: engine.logprobs(sequences))

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._engine().sync(weights)

    def _engine(self) -> Generator:
        engine = self._open()
        self._on_open(engine.name)
        return engine

    def _twice(self, call: Callable[[Generator], T]) -> T:
        engine = self._engine()
        try:
            return call(engine)
        except Exception as exc:  # engines die in many ways; a fault that is not theirs comes again the second time
            if ranks.world() > 1:  # to send it the weights takes all ranks, and the others are elsewhere
                raise
            reason = hidden((str(exc).strip().splitlines() or [""])[0])[:120]
            print(f"generator: died ({type(exc).__name__}: {reason}); starting it once more", flush=True)
        del engine
        close_generators()
        return call(self._engine())
