"""One optimiser step of the policy (and of the critic) on scored rollouts; blind to where advantages came from.

Axes: B rows, T completion tokens. The objective does not depend on how rows are cut into micro-batches or ranks: each
loss is a sum over rows divided by a denominator of the whole minibatch, known before the first backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pipeline.config.load import ConfigError
from pipeline.config.schema import Critic, Loss, Optimizer
from pipeline.distributed import ranks, sharding
from pipeline.update import losses
from pipeline.update.critic import SharedCritic, logprobs_and_values, values_of
from pipeline.update.forward import Padded, Row, completion_logprobs, micro_batches, packs, pad_rows, stack
from pipeline.update.replicated import Whole
from pipeline.update.sharded import train_on

T = TypeVar("T")


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

    @property
    def learnt_from(self) -> int:
        """Rows with a token that counts: a masked one has no KL, and is no sequence of it."""
        return sum(any(r.mask) for r in self.rows)

    def padded(self, name: str, places: Sequence[int], where: torch.device) -> Tensor | None:
        column = getattr(self, name)
        return None if column is None else stack([column[i] for i in places]).to(where)


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The rows of one optimiser step. batches: this rank's micro-batches; total, tokens: denominators over all ranks.

    blank: a row to compute for nothing where a rank has no row of its own, so that all ranks run as many forwards.
    """

    batches: list[list[int]]
    total: Tensor
    tokens: Tensor
    blank: int


@dataclass(frozen=True, slots=True)
class KlInLoss:
    coef: float
    kind: str


def make_schedule(optimizer: Any, settings: Optimizer, *, updates: int) -> Any:
    from transformers import get_scheduler

    name: str = settings.schedule
    if name == "constant" and settings.warmup_steps:
        name = "constant_with_warmup"
    schedule = get_scheduler(name, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=updates)
    # a value head on the policy's backbone learns at a constant rate, as a critic of its own does: it also learns in
    # the critic's warm-up, in which the policy's schedule stands still, at a rate of 0 where it warms up itself
    return LambdaLR(optimizer, [*schedule.lr_lambdas[:1], *[lambda _: 1.0] * (len(optimizer.param_groups) - 1)])


class Averages:
    """Sums of named figures over tokens of all micro-batches and ranks, read as means; maxima apart.

    Kept as tensors until they are read: a number fetched from a GPU for each figure would stall it each time.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, name: str, values_BT: Tensor, mask_BT: Tensor) -> None:
        pair = torch.stack([values_BT.detach().double().masked_fill(~mask_BT, 0.0).sum(), mask_BT.sum().double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def largest(self, name: str, values_BT: Tensor, mask_BT: Tensor) -> None:
        value = values_BT.detach().double().masked_fill(~mask_BT, -math.inf).max()
        self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value

    def once(self, name: str, value: float | Tensor) -> None:
        """A figure that is one number on every rank."""
        self.maxima[name] = torch.as_tensor(value).detach().double()

    def read(self) -> dict[str, float]:
        """By name; NaN where nothing was valid."""
        out: dict[str, float] = {}
        if self.sums:
            sums_N2 = ranks.summed(torch.stack(list(self.sums.values()))).tolist()
            out |= {n: s / c if c else math.nan for n, (s, c) in zip(self.sums, sums_N2, strict=True)}
        if self.maxima:
            device = next(iter(self.maxima.values())).device
            values = ranks.largest(torch.stack([m.to(device) for m in self.maxima.values()])).tolist()
            out |= {n: math.nan if v == -math.inf else v for n, v in zip(self.maxima, values, strict=True)}
        return out


class Learner:
    """Policy, critic, their optimisers. `update` is one pass over some rows: one optimiser step.

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
        self.accelerator, self.loss, self.critic_settings = accelerator, loss, critic_settings
        self.max_tokens, self.budget = max_tokens, budget
        self.shared = isinstance(policy, SharedCritic)
        if self.shared and sharding.is_cut() and sharding.is_zero():  # it would step the frozen body too
            raise ConfigError(["critic.shared under ZeRO: give shared: false, or take configs/accelerate/fsdp2.yaml"])
        rate = critic_settings.learning_rate if critic_settings is not None else 0.0
        self.policy_side = train_on(accelerator, policy, partial(_groups, optimizer.learning_rate, rate), optimizer)
        self.policy, self.optimizer = self.policy_side.forward, self.policy_side.optimizer
        self.schedule = make_schedule(self.policy_side.scheduled, optimizer, updates=updates)
        self.critic_side: Whole | None = None
        self.critic: Any = None  # wrapped for several devices, or not, or absent
        self.critic_optimizer: Any = None
        if critic is not None:
            self.critic_side = train_on(accelerator, critic, partial(_groups, rate, rate), optimizer)
            self.critic, self.critic_optimizer = self.critic_side.forward, self.critic_side.optimizer

    @property
    def where(self) -> torch.device:
        return self.accelerator.device

    @property
    def bare(self) -> Any:
        """The policy's forward, out of what distributes it."""
        return self.policy_side.bare

    @property
    def model(self) -> Any:
        """The bare causal model, as it is saved and sent to a generator."""
        return self.bare.model

    # --- looking: no gradient, each rank its share, every rank all results -------------------------------------------

    def logprobs(self, rows: Sequence[Row], *, temperature: float | None = None) -> list[Tensor]:
        """temperature: another than the sampling one."""
        return self._look(partial(completion_logprobs, temperature=temperature), self.policy, rows)

    def values(self, rows: Sequence[Row]) -> list[Tensor]:
        """Per row, (its T + 1,) values of the critic that is a model of its own."""
        assert self.critic is not None
        return self._look(values_of, self.critic, rows)

    def logprobs_and_values(self, rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = self._look(logprobs_and_values, self.policy, rows)
        return [p for p, _ in pairs], [v for _, v in pairs]

    def _look(self, look: Callable[..., list[T]], forward: nn.Module, rows: Sequence[Row]) -> list[T]:
        """look(forward, rows), by micro-batches dealt to the ranks: where weights are cut, all gather them at once, so
        each runs as many forwards as the others, on the shortest row where it has none of its own."""
        look = partial(look, forward, budget=self.budget, where=self.where)
        if ranks.world() == 1 or not rows:
            return look(rows)
        batches = ranks.dealt(micro_batches(rows, self.budget, packs=packs(forward)))
        blank = min(range(len(rows)), key=lambda i: len(rows[i]))
        done: list[tuple[int, T]] = []
        for places in batches:
            seen = look([rows[i] for i in places or [blank]])
            done += zip(places, seen, strict=False)
        return [result for _, result in sorted(ranks.gather(done), key=lambda pair: pair[0])]

    # --- learning ----------------------------------------------------------------------------------------------------

    def update(
        self,
        seen: Experience,
        places: Sequence[int],
        *,
        kl_coef: float,
        kl_kind: str,
        policy_learns: bool = True,
        demonstrations: Sequence[Row] = (),
    ) -> dict[str, float]:
        """One optimiser step on the rows at `places`. Returns figures of this step, means over tokens; none, and takes
        no step, where every token of these rows is masked.

        kl_coef: of the KL in the loss; 0 where it is in the reward. policy_learns False: only the critic does.
        demonstrations: rows to imitate in the same step, weighted by the loss's ptx_coef.
        """
        figures = Averages()
        mini = self._minibatch(seen.rows, places)
        if not mini.tokens:
            return {}
        if policy_learns or self.shared:
            imitated = demonstrations if policy_learns else ()
            self._update_policy(seen, mini, figures, KlInLoss(kl_coef, kl_kind), policy_learns, imitated)
        if self.critic is not None:
            self._update_critic(seen, mini, figures)
        return figures.read()

    def _minibatch(self, rows: Sequence[Row], places: Sequence[int]) -> Minibatch:
        """Every rank knows all rows, so denominators need no exchange."""
        chosen = [rows[i] for i in places]
        mask_BT = stack([r.mask for r in chosen]).bool()
        packed = packs(self.policy) and (self.critic is None or packs(self.critic))
        cut = micro_batches(chosen, self.budget, packs=packed)
        batches = [[places[i] for i in batch] for batch in cut]
        total = losses.denominator(mask_BT, kind=self.loss.aggregate)
        return Minibatch(ranks.dealt(batches), total, mask_BT.sum().double(), min(places, key=lambda i: len(rows[i])))

    def _update_policy(
        self,
        seen: Experience,
        mini: Minibatch,
        figures: Averages,
        kl: KlInLoss,
        policy_learns: bool,
        demonstrations: Sequence[Row],
    ) -> None:
        passes: list[Callable[[], Tensor]] = []
        if demonstrations:
            imitated = self._minibatch(demonstrations, range(len(demonstrations)))
            passes += [partial(self._ptx_loss, demonstrations, b, imitated, figures) for b in imitated.batches]
        if self.shared:
            self.bare.frozen_body = not policy_learns
        loss_of = self._policy_loss if policy_learns else self._shared_value_loss
        passes += [partial(loss_of, seen, batch, mini, figures, kl) for batch in mini.batches]
        self.policy_side.backward(passes)
        if not policy_learns:  # only the head moves: Adam would decay a weight whose gradient is 0
            for name, parameter in self.bare.named_parameters():
                if not name.startswith("value_head."):
                    parameter.grad = None
        figures.once("grad_norm", self.policy_side.step())
        if policy_learns:
            self.schedule.step()

    def _pad(self, rows: Sequence[Row], batch: Sequence[int], mini: Minibatch) -> tuple[Padded, list[int]]:
        """A micro-batch and the places of its rows; an empty one is a row that weighs nothing."""
        places = list(batch) or [mini.blank]
        padded = pad_rows([rows[i] for i in places], self.where)
        return (padded if batch else replace(padded, mask_BT=torch.zeros_like(padded.mask_BT))), places

    def _ptx_loss(self, rows: Sequence[Row], batch: Sequence[int], mini: Minibatch, figures: Averages) -> Tensor:
        """Negative log-likelihood of demonstrations, at temperature 1. Source: PPO-ptx, arXiv:2203.02155 eq. 2."""
        padded, _ = self._pad(rows, batch, mini)
        loss_BT = -self.policy(padded, temperature=1.0)[0]
        figures.add("ptx_loss", loss_BT, padded.mask_BT)
        return self.loss.ptx_coef * losses.aggregate(loss_BT, padded.mask_BT, kind="token_mean", total=mini.tokens)

    def _policy_loss(
        self, seen: Experience, batch: Sequence[int], mini: Minibatch, figures: Averages, kl: KlInLoss
    ) -> Tensor:
        padded, places = self._pad(seen.rows, batch, mini)
        logprobs_BT, entropy_BT, *values = self.policy(padded)
        mask_BT = padded.mask_BT
        generator_BT = seen.padded("generator_logprobs", places, self.where)
        old_BT = seen.padded("old_logprobs", places, self.where)
        old_BT = logprobs_BT.detach() if old_BT is None else old_BT
        advantages_BT = seen.padded("advantages", places, self.where)
        assert advantages_BT is not None and generator_BT is not None
        loss_BT = surrogate(self.loss, logprobs_BT, old_BT, advantages_BT, mask_BT)
        weights_BT = losses.importance_weights(
            old_BT, generator_BT, mask_BT, mode=self.loss.importance, level=self.loss.importance_level,
            cap=self.loss.importance_cap,
        )  # fmt: skip
        loss_BT = loss_BT * weights_BT
        figures.add("policy_loss", loss_BT, mask_BT)
        reference_BT = seen.padded("reference_logprobs", places, self.where)
        if reference_BT is not None:
            loss_BT = loss_BT + self._kl(figures, kl, logprobs_BT, old_BT, reference_BT, mask_BT)
        if self.loss.entropy_coef:
            loss_BT = loss_BT - self.loss.entropy_coef * entropy_BT.masked_fill(~mask_BT, 0.0)
        figures.add("entropy", entropy_BT, mask_BT)
        figures.add("advantage_abs", advantages_BT.abs(), mask_BT)
        self._measure_ratio(figures, logprobs_BT.detach(), old_BT, advantages_BT, mask_BT)
        measure_mismatch(figures, old_BT, generator_BT, mask_BT)
        out = losses.aggregate(loss_BT, mask_BT, kind=self.loss.aggregate, max_length=self.max_tokens, total=mini.total)
        if values:
            out = out + self._value_loss(seen, places, values[0], mask_BT, mini, figures)
        return out

    def _kl(
        self,
        figures: Averages,
        kl: KlInLoss,
        logprobs_BT: Tensor,
        old_BT: Tensor,
        reference_BT: Tensor,
        mask_BT: Tensor,
    ) -> Tensor:
        """(B, T) what the KL adds to the loss; k1 and k3 are logged wherever the penalty is."""
        figures.add("kl_k1", losses.kl_estimate(logprobs_BT.detach(), reference_BT, kind="k1"), mask_BT)
        figures.add("kl_k3", losses.kl_estimate(logprobs_BT.detach(), reference_BT, kind="k3"), mask_BT)
        if not kl.coef:
            return torch.zeros_like(logprobs_BT)
        kind = cast(Literal["k2", "k3", "unbiased"], kl.kind)
        penalty_BT = losses.kl_loss(logprobs_BT, reference_BT, mask_BT, kind=kind, old_logprobs_BT=old_BT)
        figures.add("kl_loss", penalty_BT, mask_BT)
        return kl.coef * penalty_BT

    def _measure_ratio(
        self, figures: Averages, logprobs_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
    ) -> None:
        figures.largest("ratio_max", (logprobs_BT - old_BT).masked_fill(~mask_BT, 0.0).exp(), mask_BT)
        if self.loss.kind == "reinforce":  # nothing is clipped
            return
        low_BT, high_BT = losses.clipped_tokens(
            logprobs_BT, old_BT, advantages_BT, mask_BT, clip_low=self.loss.clip_low, clip_high=self.loss.clip_high,
            level="sequence" if self.loss.kind == "gspo" else "token",
        )  # fmt: skip
        figures.add("clipped_low", low_BT.float(), mask_BT)
        figures.add("clipped_high", high_BT.float(), mask_BT)

    def _shared_value_loss(
        self, seen: Experience, batch: Sequence[int], mini: Minibatch, figures: Averages, kl: KlInLoss
    ) -> Tensor:
        """The value head alone. Log-probs take part with weight 0: DDP waits for a gradient of every weight."""
        padded, places = self._pad(seen.rows, batch, mini)
        logprobs_BT, _, values_BS = self.policy(padded)
        return self._value_loss(seen, places, values_BS, padded.mask_BT, mini, figures) + 0.0 * logprobs_BT.sum()

    def _update_critic(self, seen: Experience, mini: Minibatch, figures: Averages) -> None:
        critic, side = self.critic, self.critic_side
        assert side is not None

        def loss_of(batch: Sequence[int]) -> Tensor:
            padded, places = self._pad(seen.rows, batch, mini)
            return self._value_loss(seen, places, critic(padded), padded.mask_BT, mini, figures)

        side.backward([partial(loss_of, batch) for batch in mini.batches])
        figures.once("critic_grad_norm", side.step())

    def _value_loss(
        self,
        seen: Experience,
        places: list[int],
        values_BS: Tensor,
        mask_BT: Tensor,
        mini: Minibatch,
        figures: Averages,
    ) -> Tensor:
        assert self.critic_settings is not None
        old_BT, returns_BT = seen.padded("values", places, self.where), seen.padded("returns", places, self.where)
        assert old_BT is not None and returns_BT is not None
        clip = self.critic_settings.clip or None
        loss_BT = losses.value_loss(values_BS[:, :-1], old_BT, returns_BT, mask_BT, clip=clip)
        figures.add("value_loss", loss_BT, mask_BT)
        loss = losses.aggregate(loss_BT, mask_BT, kind="token_mean", total=mini.tokens)
        return loss * self.critic_settings.coef if self.shared else loss

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What an exact resume needs; everything else is a function of (seed, stage, step). Under LoRA no base.

        Every rank calls it, for what is cut is gathered.
        """
        out = {"policy": self.policy_side.state(), "schedule": self.schedule.state_dict()}
        return out if self.critic_side is None else {**out, "critic": self.critic_side.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.policy_side.load_state(state["policy"])
        self.schedule.load_state_dict(state["schedule"])
        if self.critic_side is not None:
            self.critic_side.load_state(state["critic"])


def _groups(rate: float, head_rate: float, model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of what learns; a value head on the policy's backbone has its critic's rate."""
    body = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("value_head.")]
    groups: list[dict[str, Any]] = [{"params": body, "lr": rate}]
    if isinstance(model, SharedCritic):
        groups.append({"params": list(model.value_head.parameters()), "lr": head_rate})
    return groups


def measure_mismatch(figures: Averages, old_BT: Tensor, generator_BT: Tensor, mask_BT: Tensor) -> None:
    """How far the generator's log-probs lie from the trainer's, over the tokens that it sampled."""
    gap_BT = (old_BT - generator_BT).abs()
    figures.add("mismatch_mean_abs", gap_BT, mask_BT)
    figures.add("mismatch_k1", losses.kl_estimate(generator_BT, old_BT, kind="k1"), mask_BT)
    figures.add("mismatch_k3", losses.kl_estimate(generator_BT, old_BT, kind="k3"), mask_BT)
    figures.largest("mismatch_max", gap_BT, mask_BT)


def surrogate(loss: Loss, logprobs_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) per-token policy loss of the configured kind."""
    if loss.kind == "reinforce":
        return losses.reinforce_surrogate(logprobs_BT, advantages_BT, mask_BT)
    kinds = {"clip": losses.clipped_surrogate, "gspo": losses.gspo_surrogate, "cispo": losses.cispo_surrogate}
    return kinds[loss.kind](
        logprobs_BT, old_BT, advantages_BT, mask_BT, clip_low=loss.clip_low, clip_high=loss.clip_high
    )


__all__ = ["Averages", "Experience", "Learner", "surrogate"]
