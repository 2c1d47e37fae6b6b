"""What the policy loop is given (LoopDeps) and what it carries from step to step (State)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from pipeline.update.overlap import Prefetch, Queued
from pipeline.update.reference import Reference
from pipeline.update.reward_monitor import RewardMonitor
from pipeline.update.segmenter import Segmenter
from pipeline.update.teacher import TeacherModel
from pipeline.update.token_choice import TokenChoice
from rewards.monitor import MonitorHistory
from rewards.surrogate import SurrogatePart


@dataclass(frozen=True, slots=True)
class Branch:
    """A completion to leave before token `at` and to sample on from there. index: its number in the whole step."""

    index: int
    scored: Scored
    at: int


class RolloutSource(Protocol):
    """Where rollouts and their scores come from; every rank gets all of them."""

    def sample_and_score(self, prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        """The configured number of scored rows of each prompt, prompt-major; counts what it sampled."""
        ...

    def continue_and_score(self, branches: Sequence[Branch], step: int) -> list[list[Scored]]:
        """For each branch its scored continuations; only monte_carlo credit asks for them."""
        ...

    def evaluate(self, step: int) -> dict[str, Any]:
        """Figures of the policy on the held-out prompts after so many steps."""
        ...


@dataclass(slots=True)
class LoopDeps:
    """What the policy loop works with.

    seed_key: what every draw of the loop is a function of, besides the step.
    reference: None if no KL is used. demonstrations: rows to imitate in each update if the loss has a ptx_coef.
    reference_tolerance: KL per token between policy and reference at step 0 that rounding may explain.
    sources, ratios: name -> positions of its prompts, and its share of them, if several sources are mixed by ratio.
    reward_weights: part of the reward -> its weight, for credit that takes the parts apart. teacher: of distillation.
    monitor: a second score of each step's rollouts. prefetch: samples later steps while this one updates.
    segmenter: says where segments end, for credit.level segment. surrogates: reward parts that learn from each step.
    token_choice: of a loss that leaves tokens out or treats some apart.
    """

    block: Policy
    seed_key: tuple[int | str, ...]
    prompts: Sequence[Prompt]
    source: RolloutSource
    learner: Learner
    generator: Generator
    reference: Reference | None
    max_tokens: int
    canary_tolerance: Tolerance
    directory: StageDir
    record: Callable[..., None]
    reference_tolerance: float = 1e-5
    sources: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    teacher: TeacherModel | None = None
    demonstrations: Sequence[Row] = ()
    monitor: RewardMonitor | None = None
    prefetch: Prefetch | None = None
    segmenter: Segmenter | None = None
    surrogates: Sequence[SurrogatePart] = ()
    token_choice: TokenChoice | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.block.loss.chooses_tokens:
            self.token_choice = TokenChoice(self.block.loss, self.seed_key)


@dataclass(slots=True)
class State:
    """Besides weights and optimizers, all that a resumed run cannot recompute; token counts are kept with the logs."""

    step: int = 0
    controller: KLController = field(default_factory=lambda: KLController(0.0))
    steps_without_signal: int = 0
    prompts_drawn: int = 0
    drawn: dict[str, int] = field(default_factory=dict)  # source -> prompts drawn from it
    queue: list[Queued] = field(default_factory=list)  # batches of the next steps that are sampled already, in order
    rates: dict[int, tuple[float, float]] = field(default_factory=dict)  # prompt index -> discounted passes and samples
    canary_max: float = 0.0
    canary_floor: float = math.nan  # its gap between equal weights, right after the first sync
    mismatch: float = math.nan  # mean |log-prob difference| of generator and trainer in the worst step
    budget_spent: bool = False  # token_budget completion tokens are sampled and trained on
    monitor: MonitorHistory = field(default_factory=MonitorHistory)
    best_step: int = 0  # steps done before the best evaluation pass; 0: none yet
    best_score: float = math.nan
    passes_since_best: int = 0
    stopped_early: bool = False  # `patience` passes without a better one


def save(deps: LoopDeps, state: State) -> None:
    """A checkpoint, which rank 0 writes; every rank calls it, since sharded tensors are gathered first."""
    loop = {name: getattr(state, name) for name in State.__slots__}
    loop |= {"controller": state.controller.to_dict(), "monitor": state.monitor.to_dict()}
    reference = deps.reference.state() if deps.reference is not None else {}
    teacher = deps.teacher.state() if deps.teacher is not None else {}
    saved = {"learner": deps.learner.state(), "reference": reference, "teacher": teacher, "loop": loop}
    saved["surrogates"] = {part.name: part.state() for part in deps.surrogates}
    if ranks.is_main():
        deps.directory.checkpoints.save(state.step, lambda path: torch.save(saved, path / "state.pt"))
    ranks.barrier()


def load(path: Path, deps: LoopDeps) -> State:
    """The state in a checkpoint; weights and optimizer states are loaded into the learner and the reference."""
    saved = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    deps.learner.load_state(saved["learner"])
    if deps.reference is not None:
        deps.reference.load_state(saved["reference"])
    if deps.teacher is not None:
        deps.teacher.load_state(saved["teacher"])
    for part in deps.surrogates:
        part.load_state(saved["surrogates"][part.name])
    loop = saved["loop"]
    own = {
        "controller": KLController.from_dict(loop["controller"]),
        "monitor": MonitorHistory.from_dict(loop["monitor"]),
    }
    return State(**{**loop, **own})
