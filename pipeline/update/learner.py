"""One optimizer step of the policy (and of the critic) on scored rollouts, and their log-probs and values without one.

The losses are in policy_loss.py, the replicated and sharded training backends in replicated.py and sharded.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pipeline.config.load import ConfigError
from pipeline.config.schema import Critic, Loss, Optimizer
from pipeline.distributed import ranks, sharding
from pipeline.update import losses
from pipeline.update.critic import SharedCritic, logprobs_and_values, values_of
from pipeline.update.forward import Row, completion_figures, completion_logprobs, micro_batches, packs, stack
from pipeline.update.policy_loss import Averages, Experience, Minibatch, Objective, policy_loss, ptx_loss, value_loss
from pipeline.update.replicated import ReplicatedBackend
from pipeline.update.sharded import train_on

T = TypeVar("T")


class Inference:
    """Log-probs and values without gradient: each rank computes a share of the rows, every rank holds all results."""

    def __init__(self, policy: nn.Module, critic: nn.Module | None, *, budget: int, device: torch.device) -> None:
        self.policy, self.critic, self.budget, self.device = policy, critic, budget, device

    def logprobs(self, rows: Sequence[Row], *, temperature: float | None = None) -> list[Tensor]:
        """Per row, (its T,) log-probs of the policy. temperature: None = the sampling temperature."""
        return self._shared_out(partial(completion_logprobs, temperature=temperature), self.policy, rows)

    def figures(self, rows: Sequence[Row], *, squares: bool = False) -> list[list[Tensor]]:
        """Per row, log-probs, entropies and, if squares, the sum of squared probabilities; see `completion_figures`."""

        def compute(
            forward: nn.Module, some: Sequence[Row], *, budget: int, device: torch.device
        ) -> list[list[Tensor]]:
            return completion_figures(forward, some, budget, device, squares=squares)

        return self._shared_out(compute, self.policy, rows)

    def values(self, rows: Sequence[Row]) -> list[Tensor]:
        """Per row, (its T + 1,) values of a critic with a backbone of its own."""
        assert self.critic is not None
        return self._shared_out(values_of, self.critic, rows)

    def logprobs_and_values(self, rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
        """Both from one pass of a policy with a `SharedCritic`."""
        pairs = self._shared_out(logprobs_and_values, self.policy, rows)
        return [p for p, _ in pairs], [v for _, v in pairs]

    def _shared_out(self, function: Callable[..., list[T]], forward: nn.Module, rows: Sequence[Row]) -> list[T]:
        """function(forward, rows), its micro-batches dealt to the ranks. Sharded weights are gathered by all ranks at
        once, so each runs as many forwards as the others, on the shortest row where it has none of its own."""
        compute = partial(function, forward, budget=self.budget, device=self.device)
        if ranks.world() == 1 or not rows:
            return compute(rows)
        filler = min(range(len(rows)), key=lambda i: len(rows[i]))
        done: list[tuple[int, T]] = []
        for indices in ranks.dealt(micro_batches(rows, self.budget, packs=packs(forward))):
            done += zip(indices, compute([rows[i] for i in indices or [filler]]), strict=False)
        return [result for _, result in sorted(ranks.gather(done), key=lambda pair: pair[0])]


class Learner:
    """Policy, critic, their optimizers and the learning-rate schedule. `update` is one optimizer step on some rows.

    The critic is a model of its own, or the second head of a `SharedCritic` policy, which learns in the policy's step.
    """

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
        self.shared = isinstance(policy, SharedCritic)
        if self.shared and sharding.is_sharded() and sharding.is_zero():  # it would step the frozen body too
            raise ConfigError(["critic.shared under ZeRO: give shared: false, or use configs/accelerate/fsdp2.yaml"])
        self.budget, self.device = budget, accelerator.device
        self.objective = Objective(loss, critic_settings, max_tokens)
        rate = critic_settings.learning_rate if critic_settings is not None else 0.0
        self.policy_backend = train_on(
            accelerator, policy, partial(parameter_groups, optimizer.learning_rate, rate), optimizer
        )
        self.policy = self.policy_backend.forward
        self.schedule = make_schedule(self.policy_backend.scheduled, optimizer, updates=updates)
        self.critic_backend: ReplicatedBackend | None = None
        self.critic: Any = None  # wrapped by its backend; None without a critic of its own
        if critic is not None:
            self.critic_backend = train_on(accelerator, critic, partial(parameter_groups, rate, rate), optimizer)
            self.critic = self.critic_backend.forward
        self.inference = Inference(self.policy, self.critic, budget=budget, device=self.device)

    @property
    def unwrapped(self) -> Any:
        """The policy's forward without the wrapper that distributes it."""
        return self.policy_backend.unwrapped

    @property
    def model(self) -> Any:
        """The causal language model itself, as it is saved and sent to a generator."""
        return self.unwrapped.model

    def update(
        self,
        batch: Experience,
        indices: Sequence[int],
        *,
        kl_coef: float,
        kl_kind: str,
        train_policy: bool = True,
        demonstrations: Sequence[Row] = (),
    ) -> dict[str, float]:
        """One optimizer step on these rows. Returns its metrics, means over tokens; {} and no step where every token
        of these rows is masked.

        kl_coef: of the KL in the loss; 0 where it is in the reward. train_policy False: only the critic learns.
        demonstrations: rows to imitate in the same step, weighted by the loss's ptx_coef.
        """
        objective, metrics = replace(self.objective, kl_coef=kl_coef, kl_kind=kl_kind), Averages()
        mini = self._minibatch(batch.rows, indices)
        if not mini.num_tokens:
            return {}
        if train_policy:
            if self.shared:
                self.unwrapped.frozen_body = False
            done = self._imitate(demonstrations, len(mini.micro_batches), metrics) if demonstrations else 0
            for number, micro_batch in enumerate(mini.micro_batches, done):
                with self.policy_backend.accumulate(number, done + len(mini.micro_batches)):
                    padded, rows = mini.pad(batch.rows, micro_batch, self.device)
                    loss = policy_loss(self.policy, batch, padded, rows, mini, objective, metrics)
                    self.policy_backend.backward(loss)
            metrics.once("grad_norm", self.policy_backend.step())
            self.schedule.step()
        elif self.shared:
            self._update_value_head(batch, mini, objective, metrics)
        if self.critic_backend is not None:
            for number, micro_batch in enumerate(mini.micro_batches):
                with self.critic_backend.accumulate(number, len(mini.micro_batches)):
                    padded, rows = mini.pad(batch.rows, micro_batch, self.device)
                    loss = value_loss(self.critic(padded), batch, padded, rows, mini, objective, metrics)
                    self.critic_backend.backward(loss)
            metrics.once("critic_grad_norm", self.critic_backend.step())
        return metrics.read()

    def _imitate(self, demonstrations: Sequence[Row], following: int, metrics: Averages) -> int:
        """Gradients of the demonstrations' micro-batches, before `following` others. Returns how many there were."""
        mini = self._minibatch(demonstrations, range(len(demonstrations)))
        for number, micro_batch in enumerate(mini.micro_batches):
            with self.policy_backend.accumulate(number, len(mini.micro_batches) + following):
                padded, _ = mini.pad(demonstrations, micro_batch, self.device)
                loss = ptx_loss(self.policy, padded, mini, coef=self.objective.loss.ptx_coef, metrics=metrics)
                self.policy_backend.backward(loss)
        return len(mini.micro_batches)

    def _update_value_head(self, batch: Experience, mini: Minibatch, objective: Objective, metrics: Averages) -> None:
        """The head of a shared critic alone, while the critic warms up."""
        self.unwrapped.frozen_body = True
        for number, micro_batch in enumerate(mini.micro_batches):
            with self.policy_backend.accumulate(number, len(mini.micro_batches)):
                padded, rows = mini.pad(batch.rows, micro_batch, self.device)
                logprobs_BT, _, values_BS = self.policy(padded)
                loss = value_loss(values_BS, batch, padded, rows, mini, objective, metrics)
                # log-probs take part with weight 0: DDP waits for a gradient of every weight
                self.policy_backend.backward(loss + 0.0 * logprobs_BT.sum())
        for name, parameter in self.unwrapped.named_parameters():
            if not name.startswith("value_head."):
                parameter.grad = None  # Adam would decay a weight whose gradient is 0
        metrics.once("grad_norm", self.policy_backend.step())

    def _minibatch(self, rows: Sequence[Row], indices: Sequence[int]) -> Minibatch:
        """Every rank holds all rows, so denominators need no exchange."""
        chosen = [rows[i] for i in indices]
        mask_BT = stack([r.mask for r in chosen]).bool()
        packed = packs(self.policy) and (self.critic is None or packs(self.critic))
        batches = [[indices[i] for i in some] for some in micro_batches(chosen, self.budget, packs=packed)]
        total = losses.denominator(mask_BT, kind=self.objective.loss.aggregate)
        filler = min(indices, key=lambda i: len(rows[i]))
        observing = sum(row.has_observations for row in chosen)
        return Minibatch(ranks.dealt(batches), total, mask_BT.sum().double(), observing, filler)

    def state(self) -> dict[str, Any]:
        """What an exact resume needs; everything else is a function of (seed, stage, step). Without the base of LoRA.

        Every rank calls it, since sharded tensors are gathered.
        """
        out = {"policy": self.policy_backend.state(), "schedule": self.schedule.state_dict()}
        return out if self.critic_backend is None else {**out, "critic": self.critic_backend.state()}

    def weights(self) -> dict[str, Tensor]:
        """The policy's trained weights, full; every rank calls it."""
        return cast(dict[str, Tensor], self.policy_backend.state()["weights"])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.policy_backend.load_weights(weights)

    def load_state(self, state: dict[str, Any]) -> None:
        self.policy_backend.load_state(state["policy"])
        self.schedule.load_state_dict(state["schedule"])
        if self.critic_backend is not None:
            self.critic_backend.load_state(state["critic"])


def parameter_groups(rate: float, head_rate: float, model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate; a value head on the policy's backbone has its critic's rate."""
    body = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("value_head.")]
    groups: list[dict[str, Any]] = [{"params": body, "lr": rate}]
    if isinstance(model, SharedCritic):
        groups.append({"params": list(model.value_head.parameters()), "lr": head_rate})
    return groups


def make_schedule(optimizer: Any, settings: Optimizer, *, updates: int) -> Any:
    """The learning-rate schedule of the first parameter group; other groups keep a constant rate.

    A value head on the policy's backbone learns at a constant rate, as a critic of its own does: it also learns during
    the critic's warm-up, while the policy's schedule stands still, at a rate of 0 if the schedule itself warms up.
    """
    from transformers import get_scheduler

    name: str = settings.schedule
    if name == "constant" and settings.warmup_steps:
        name = "constant_with_warmup"
    schedule = get_scheduler(name, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=updates)
    return LambdaLR(optimizer, [*schedule.lr_lambdas[:1], *[lambda _: 1.0] * (len(optimizer.param_groups) - 1)])


__all__ = ["Averages", "Experience", "Inference", "Learner", "make_schedule", "parameter_groups"]
