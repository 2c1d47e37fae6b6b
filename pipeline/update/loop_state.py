"""What the loop is given and what it carries from step to step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.config.schema import Policy
from pipeline.credit.token_rewards import KLController
from pipeline.distributed import ranks
from pipeline.generation.generator import Generator
from pipeline.records import Prompt, Scored
from pipeline.run.stage_dir import StageDir
from pipeline.update.canary import Tolerance
from pipeline.update.forward import Row
from pipeline.update.learner import Learner
from pipeline.update.overlap import Ahead
from pipeline.update.reference import Reference
from pipeline.update.reward_monitor import Watch
from rewards.monitor import Monitor


class SampleAndScore(Protocol):
    """`samples` scored rows of each prompt, prompt-major, on every rank; counts what it sampled."""

    def __call__(self, prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """A completion to be left before token `at` and sampled on from there. place: its number in the whole step."""

    place: int
    scored: Scored
    at: int


@dataclass(slots=True)
class Parts:
    """seed_key: what every draw of the loop is a function of, besides the step.

    continue_and_score: for each cut, its scored continuations; only monte_carlo credit asks for them.
    demonstrations: rows to imitate in each update where the loss has a ptx_coef.
    reference_tolerance: KL a token between policy and reference at step 0 that rounding may explain.
    """

    block: Policy
    seed_key: tuple[int | str, ...]
    prompts: Sequence[Prompt]
    sample_and_score: SampleAndScore
    learner: Learner
    generator: Generator
    reference: Reference | None  # None where no KL is asked
    max_tokens: int
    canary_tolerance: Tolerance
    directory: StageDir
    record: Callable[..., None]
    reference_tolerance: float = 1e-5
    continue_and_score: Callable[[Sequence[Cut], int], list[list[Scored]]] | None = None
    demonstrations: Sequence[Row] = ()
    judge: Callable[[int], dict[str, Any]] | None = None  # figures of the policy after so many steps
    watch: Watch | None = None  # a second look at each step's rollouts
    ahead: Ahead | None = None  # samples the next step while this one updates


def count(tokens: dict[str, int], scored: Sequence[Scored]) -> None:
    """Add what was sampled, over all ranks: the budget that methods are compared at."""
    tokens["prompt"] += sum(len(s.rollout.prompt.ids) for s in scored)
    tokens["completion"] += sum(sum(s.rollout.mask) for s in scored)


@dataclass(slots=True)
class State:
    """Besides weights and optimisers, all that a resumed run cannot compute anew; tokens sampled go with the logs."""

    step: int = 0
    controller: KLController = field(default_factory=lambda: KLController(0.0))
    steps_without_signal: int = 0
    prompts_drawn: int = 0
    canary_max: float = 0.0
    canary_floor: float = math.nan  # its gap between equal weights, right after the first sync
    mismatch: float = math.nan
    monitor: Monitor = field(default_factory=Monitor)


def save(parts: Parts, state: State) -> None:
    """A checkpoint, which rank 0 writes; every rank calls it, for what is cut over them is gathered first."""
    loop = {name: getattr(state, name) for name in State.__slots__}
    loop |= {"controller": state.controller.to_dict(), "monitor": state.monitor.to_dict()}
    reference = parts.reference.state() if parts.reference is not None else {}
    saved = {"learner": parts.learner.state(), "reference": reference, "loop": loop}
    if ranks.is_main():
        parts.directory.checkpoints.save(state.step, lambda place: torch.save(saved, place / "state.pt"))
    ranks.barrier()


def load(place: Path, parts: Parts) -> State:
    """The state in a checkpoint; weights and optimisers go where they belong."""
    saved = torch.load(place / "state.pt", weights_only=True, map_location="cpu")
    parts.learner.load_state(saved["learner"])
    if parts.reference is not None:
        parts.reference.load_state(saved["reference"])
    loop = saved["loop"]
    own = {"controller": KLController.from_dict(loop["controller"]), "monitor": Monitor.from_dict(loop["monitor"])}
    return State(**{**loop, **own})


class Stopwatch:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def rates(self, tokens: int) -> dict[str, float]:
        """Seconds of each phase, and sampled tokens a second of each and of the whole step."""
        total = max(sum(self.seconds.values()), 1e-9)
        speeds = {f"{name}_tokens_per_s": round(tokens / max(s, 1e-9), 1) for name, s in self.seconds.items()}
        return {**{n: round(s, 4) for n, s in self.seconds.items()}, **speeds, "tokens_per_s": round(tokens / total, 1)}
