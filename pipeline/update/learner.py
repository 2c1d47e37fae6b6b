"""One optimiser step of the policy (and of the critic) on scored rollouts; blind to where advantages came from.

Axes: B rows, T completion tokens. The objective does not depend on how rows are cut into micro-batches or ranks: each
loss is a sum over rows divided by a denominator of the whole minibatch, known before the first backward.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.credit.advantages import explained_variance
from pipeline.schema import Critic, Loss, Optimizer
from pipeline.update import losses
from pipeline.update.forward import Padded, Row, completion_logprobs, micro_batches, pad_rows, stack


@dataclass(slots=True)
class Experience:
    """Everything an update needs of one step's rows; each tensor is (its T,), on the CPU, without gradient.

    old_logprobs: the trainer's before the first update; None = on-policy, the current ones are the old ones.
    reference_logprobs: None where the loss asks for no KL. values, returns: None without a critic.
    """

    rows: list[Row]
    advantages: list[Tensor]
    generator_logprobs: list[Tensor]
    old_logprobs: list[Tensor] | None = None
    reference_logprobs: list[Tensor] | None = None
    values: list[Tensor] | None = None
    returns: list[Tensor] | None = None

    def padded(self, name: str, places: Sequence[int], where: torch.device) -> Tensor | None:
        column = getattr(self, name)
        return None if column is None else stack([column[i] for i in places]).to(where)


def make_optimizer(
    parameters: Sequence[nn.Parameter], settings: Optimizer, *, learning_rate: float
) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [p for p in parameters if p.requires_grad],
        lr=learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def make_schedule(optimizer: Any, settings: Optimizer, *, updates: int) -> Any:
    from transformers import get_scheduler

    name = settings.schedule
    if name == "constant" and settings.warmup_steps:
        name = "constant_with_warmup"
    return get_scheduler(name, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=updates)


class Averages:
    """Sums of named figures over tokens of all micro-batches, read as means; maxima apart."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self.maxima: dict[str, float] = {}

    def add(self, name: str, values_BT: Tensor, mask_BT: Tensor) -> None:
        self.sums[name] += float(values_BT.detach().double().masked_fill(~mask_BT, 0.0).sum())
        self.counts[name] += float(mask_BT.sum())

    def maximum(self, name: str, value: float) -> None:
        self.maxima[name] = max(self.maxima.get(name, -math.inf), value)

    def read(self) -> dict[str, float]:
        means = {
            name: total / self.counts[name] if self.counts[name] else math.nan for name, total in self.sums.items()
        }
        return means | self.maxima


class Learner:
    """Policy, critic, their optimisers. `update` is one pass over some rows: one optimiser step."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: nn.Module,
        critic: nn.Module | None,
        *,
        loss: Loss,
        optimizer: Optimizer,
        critic_settings: Critic | None,
        updates: int,
        max_tokens: int,
        budget: int,
    ) -> None:
        self.accelerator, self.loss, self.settings, self.critic_settings = accelerator, loss, optimizer, critic_settings
        self.max_tokens, self.budget = max_tokens, budget
        adam = make_optimizer(list(policy.parameters()), optimizer, learning_rate=optimizer.learning_rate)
        self.policy, self.optimizer = accelerator.prepare(policy, adam)
        self.schedule = make_schedule(self.optimizer, optimizer, updates=updates)
        self.critic = self.critic_optimizer = None
        if critic is not None and critic_settings is not None:
            adam = make_optimizer(list(critic.parameters()), optimizer, learning_rate=critic_settings.learning_rate)
            self.critic, self.critic_optimizer = accelerator.prepare(critic, adam)

    @property
    def where(self) -> torch.device:
        return self.accelerator.device

    @property
    def model(self) -> Any:
        """The bare causal model, as it is saved and sent to a generator."""
        return self.accelerator.unwrap_model(self.policy).model

    def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        return completion_logprobs(self.policy, rows, budget=self.budget, where=self.where)

    def update(
        self, seen: Experience, places: Sequence[int], *, kl_coef: float, kl_kind: str, policy_learns: bool = True
    ):
        """One optimiser step on the rows at `places`. Returns figures of this step, means over tokens.

        kl_coef: of the KL in the loss; 0 where it is in the reward. policy_learns False: only the critic does.
        """
        figures = Averages()
        rows = [seen.rows[i] for i in places]
        batches = [[places[i] for i in batch] for batch in micro_batches(rows, self.budget)]
        mask_BT = stack([r.mask for r in rows]).bool()
        total = self._over_ranks(losses.denominator(mask_BT, kind=self.loss.aggregate))
        tokens = self._over_ranks(mask_BT.sum().double())
        if policy_learns:
            for number, batch in enumerate(batches):
                with self._syncing(self.policy, last=number == len(batches) - 1):
                    loss = self._policy_loss(seen, batch, figures, total=total, kl_coef=kl_coef, kl_kind=kl_kind)
                    self.accelerator.backward(loss * self.accelerator.num_processes)
            norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm)
            figures.maximum("grad_norm", float(norm))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
        if self.critic is not None:
            self._update_critic(seen, batches, figures, tokens)
        return figures.read()

    def _policy_loss(
        self, seen: Experience, batch: Sequence[int], figures: Averages, *, total: Tensor, kl_coef: float, kl_kind: str
    ) -> Tensor:
        padded = pad_rows([seen.rows[i] for i in batch], self.where)
        logprobs_BT, entropy_BT = self.policy(padded)
        mask_BT = padded.mask_BT
        generator_BT = seen.padded("generator_logprobs", batch, self.where)
        old_BT = seen.padded("old_logprobs", batch, self.where)
        old_BT = logprobs_BT.detach() if old_BT is None else old_BT
        advantages_BT = seen.padded("advantages", batch, self.where)
        assert advantages_BT is not None and generator_BT is not None
        loss_BT = surrogate(self.loss, logprobs_BT, old_BT, advantages_BT, mask_BT)
        weights_BT = losses.importance_weights(
            old_BT, generator_BT, mask_BT, mode=self.loss.importance, level=self.loss.importance_level,
            cap=self.loss.importance_cap,
        )  # fmt: skip
        loss_BT = loss_BT * weights_BT
        figures.add("policy_loss", loss_BT, mask_BT)
        reference_BT = seen.padded("reference_logprobs", batch, self.where)
        if reference_BT is not None:
            for kind in ("k1", "k3"):
                kl_BT = losses.kl_estimate(logprobs_BT.detach(), reference_BT, kind=kind)
                figures.add(f"kl_{kind}", kl_BT, mask_BT)
            if kl_coef:
                penalty_BT = losses.kl_loss(logprobs_BT, reference_BT, mask_BT, kind=kl_kind, old_logprobs_BT=old_BT)
                figures.add("kl_loss", penalty_BT, mask_BT)
                loss_BT = loss_BT + kl_coef * penalty_BT
        if self.loss.entropy_coef:
            loss_BT = loss_BT - self.loss.entropy_coef * entropy_BT.masked_fill(~mask_BT, 0.0)
        self._measure(figures, logprobs_BT, old_BT, generator_BT, entropy_BT, advantages_BT, mask_BT)
        return losses.aggregate(loss_BT, mask_BT, kind=self.loss.aggregate, max_length=self.max_tokens, total=total)

    def _measure(
        self, figures: Averages, logprobs_BT, old_BT, generator_BT, entropy_BT, advantages_BT, mask_BT
    ) -> None:
        figures.add("entropy", entropy_BT, mask_BT)
        figures.add("advantage_abs", advantages_BT.abs(), mask_BT)
        low_BT, high_BT = losses.clipped_tokens(
            logprobs_BT, old_BT, advantages_BT, mask_BT, clip_low=self.loss.clip_low, clip_high=self.loss.clip_high
        )
        figures.add("clipped_low", low_BT.float(), mask_BT)
        figures.add("clipped_high", high_BT.float(), mask_BT)
        if mask_BT.any():
            figures.maximum("ratio_max", float((logprobs_BT.detach() - old_BT)[mask_BT].max().exp()))
            gap_BT = (old_BT - generator_BT).abs()
            figures.add("mismatch_mean_abs", gap_BT, mask_BT)
            figures.add("mismatch_k1", losses.kl_estimate(generator_BT, old_BT, kind="k1"), mask_BT)
            figures.add("mismatch_k3", losses.kl_estimate(generator_BT, old_BT, kind="k3"), mask_BT)
            figures.maximum("mismatch_max", float(gap_BT[mask_BT].max()))

    def _update_critic(
        self, seen: Experience, batches: Sequence[Sequence[int]], figures: Averages, tokens: Tensor
    ) -> None:
        assert self.critic is not None and self.critic_optimizer is not None and self.critic_settings is not None
        for number, batch in enumerate(batches):
            padded = pad_rows([seen.rows[i] for i in batch], self.where)
            with self._syncing(self.critic, last=number == len(batches) - 1):
                values_BT = self.critic(padded)[:, :-1]
                old_BT, returns_BT = seen.padded("values", batch, self.where), seen.padded("returns", batch, self.where)
                assert old_BT is not None and returns_BT is not None
                clip = self.critic_settings.clip or None
                loss_BT = losses.value_loss(values_BT, old_BT, returns_BT, padded.mask_BT, clip=clip)
                figures.add("value_loss", loss_BT, padded.mask_BT)
                loss = losses.aggregate(loss_BT, padded.mask_BT, kind="token_mean", total=tokens)
                self.accelerator.backward(loss * self.accelerator.num_processes)
        norm = self.accelerator.clip_grad_norm_(self.critic.parameters(), self.settings.max_grad_norm)
        figures.maximum("critic_grad_norm", float(norm))
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()

    def _syncing(self, model: nn.Module, *, last: bool) -> Any:
        """Gradients are averaged over ranks once, with the last micro-batch."""
        import contextlib

        return contextlib.nullcontext() if last else self.accelerator.no_sync(model)

    def _over_ranks(self, value: Tensor) -> Tensor:
        return (
            self.accelerator.reduce(value.to(self.where), reduction="sum")
            if self.accelerator.num_processes > 1
            else value
        )

    def state(self) -> dict[str, Any]:
        """What an exact resume needs; everything else is a function of (seed, stage, step)."""
        out = {
            "policy": self.accelerator.unwrap_model(self.policy).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        if self.critic is not None and self.critic_optimizer is not None:
            out["critic"] = self.accelerator.unwrap_model(self.critic).state_dict()
            out["critic_optimizer"] = self.critic_optimizer.state_dict()
        return out

    def load_state(self, state: dict[str, Any]) -> None:
        self.accelerator.unwrap_model(self.policy).load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.critic is not None and self.critic_optimizer is not None:
            self.accelerator.unwrap_model(self.critic).load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])


def surrogate(loss: Loss, logprobs_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) per-token policy loss of the configured kind."""
    if loss.kind == "reinforce":
        return losses.reinforce_surrogate(logprobs_BT, advantages_BT, mask_BT)
    kinds = {"clip": losses.clipped_surrogate, "gspo": losses.gspo_surrogate, "cispo": losses.cispo_surrogate}
    return kinds[loss.kind](
        logprobs_BT, old_BT, advantages_BT, mask_BT, clip_low=loss.clip_low, clip_high=loss.clip_high
    )


def value_fit(values: Sequence[Tensor], returns: Sequence[Tensor], rows: Sequence[Row]) -> float:
    """Explained variance of the returns by the values the critic gave before it was updated."""
    mask_BT = stack([r.mask for r in rows]).bool()
    return explained_variance(stack(values), stack(returns), mask_BT)


__all__ = ["Experience", "Learner", "Padded", "surrogate", "value_fit"]
