"""The policy loop on a tiny model with scripted samples."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.config.schema import Model, Policy
from pipeline.credit.token_rewards import KLController
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored
from pipeline.run.stage_dir import StageDir
from pipeline.update.critic import SharedCritic, from_model
from pipeline.update.experience import make_experience
from pipeline.update.forward import CompletionLogprobs
from pipeline.update.learner import Learner
from pipeline.update.loop_state import LoopDeps, State
from pipeline.update.reference import Copy

PROMPTS = [Prompt(i, f"p{i}", (3 + i, 8, 13)) for i in range(6)]


def scored(
    reward: float,
    *,
    prompt: Prompt = PROMPTS[0],
    ids: Sequence[int] = (5, 6, 7, 2),
    finished: bool = True,
    sampled: tuple[bool, ...] | None = None,
    turn: int = 0,
    steps: tuple[tuple[int, float], ...] = (),
) -> Scored:
    rollout = Rollout(prompt, 0, tuple(ids), (-3.0,) * len(ids), "text", finished, sampled, turn)
    return Scored(rollout, reward, "error" if math.isnan(reward) else "pass", {}, "", steps)


class Scripted:
    """A rollout source of given answers."""

    def __init__(self, sample: Any = None, continue_and_score: Any = None) -> None:
        self.sample_and_score, self.continue_and_score = sample, continue_and_score

    def evaluate(self, step: int) -> dict[str, Any]:
        raise AssertionError("no evaluation was configured")


def make_deps(
    place: str, tmp_path: Path, block: Policy, sample: Any = None, *, continue_and_score: Any = None, **more: Any
) -> LoopDeps:
    model = models.load_policy(place, Model()).train()
    shared = block.critic is not None and block.critic.shared
    kind = SharedCritic if shared else CompletionLogprobs
    critic = from_model(models.load_policy(place, Model())) if block.critic is not None and not shared else None
    learner = Learner(
        Accelerator(cpu=True), kind(model, temperature=1.0), critic, loss=block.loss, optimizer=block.optimizer,
        critic_settings=block.critic, updates=9, max_tokens=8, budget=block.tokens_per_microbatch,
    )  # fmt: skip
    directory = StageDir(tmp_path, "grpo")
    directory.open()
    reference = None
    if block.kl.coef:
        copy = CompletionLogprobs(models.load_policy(place, Model()), temperature=1.0)
        reference = Copy(copy, learner, block.kl)
    return LoopDeps(
        block=block, seed_key=(1, "grpo"), prompts=PROMPTS, source=Scripted(sample, continue_and_score),
        learner=learner, generator=None, reference=reference, max_tokens=8, canary_tolerance=1e-3,  # type: ignore[arg-type]
        directory=directory, record=print, **more,
    )  # fmt: skip


def credited(place: str, tmp_path: Path, block: Policy, rows: Sequence[Scored], **more: Any):
    """(experience, metrics) of scripted rows."""
    state = State(controller=KLController(block.kl.coef, block.kl.target, block.kl.horizon))
    return make_experience(make_deps(place, tmp_path, block, **more), state, rows)


def lists(tensors: Sequence[torch.Tensor] | None) -> list[list[float]]:
    assert tensors is not None
    return [[round(x, 5) for x in t.tolist()] for t in tensors]
