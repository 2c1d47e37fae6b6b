"""Opens the engine lazily and restarts it once if a call crashes; the replay uses the same seeds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.distributed import ranks
from pipeline.generation.engines import close_generators, open_generator
from pipeline.generation.generator import Generator, OnDone, Request, Sample
from verifiers._secrets import hidden

T = TypeVar("T")


class Reliable:
    """A generator opened on first use and restarted once if a call crashes: same requests, same samples. With several
    ranks there is no restart: the run ends, and resumes from its checkpoint.

    Stages share engines: one that was given another model's weights meanwhile is opened again, with this one's.
    weights: what a policy in training pushes at each sync, for an engine opened again between two syncs; None: the
    engine holds the model at model_dir. on_open gets the generator's name.
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
        # weakly: the engine outlives this object, whose `weights` hold a policy in training and its optimizer
        myself = weakref.ref(self)

        def on_lost() -> None:
            if (still_here := myself()) is not None:
                still_here._held = None

        self._open = partial(open_generator, model_dir, model, generate, max_model_len=max_model_len, on_lost=on_lost)
        self._on_open = on_open
        self._held: Generator | None = None  # with these weights
        self.weights: Callable[[], Iterable[tuple[str, torch.Tensor]]] | None = None

    @property
    def name(self) -> str:
        return self._engine().name

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        """With several ranks, each samples its share with its own engine and all get every sample; on_done is only
        called in a run of one rank."""
        if on_done is not None and ranks.world() == 1:
            return self._retried(lambda engine: engine.sample(requests, sampling, stop_token_ids, on_done))
        return ranks.mapped(
            lambda mine: self._retried(lambda engine: engine.sample(mine, sampling, stop_token_ids)), requests
        )

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._retried(lambda engine: engine.logprobs(sequences))

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._engine().sync(weights)

    def _engine(self) -> Generator:
        if self._held is None:
            engine = self._open(weights=self.weights)
            self._on_open(engine.name)
            self._held = engine
        return self._held

    def _retried(self, call: Callable[[Generator], T]) -> T:
        engine = self._engine()
        try:
            return call(engine)
        except Exception as exc:  # engines crash in many ways; a fault that is not theirs recurs in the second try
            if ranks.world() > 1:  # pushing weights takes all ranks, and the others are elsewhere
                raise
            reason = hidden((str(exc).strip().splitlines() or [""])[0])[:120]
            print(f"generator: crashed ({type(exc).__name__}: {reason}); restarting it once", flush=True)
        del engine
        close_generators()
        return call(self._engine())
