"""Model-free values from logged samples: Q and V heads, and two ways to turn them into a policy.

V(s) is fitted to a high expectile of the Q of the actions logged at s, and Q(s, a) to r + gamma * V(s'): the best
value in the logs, without evaluating Q on an action that is not in them. Source: IQL, arXiv:2110.06169 §4; at token
level ILQL, arXiv:2206.11871 §3.

Differs from ILQL in having a single, linear Q head on the hidden state that the language head reads. The shifted policy
softmax(logits + beta * (Q - V)) is therefore a plain causal model: V shifts all logits of a position equally and
cancels, and logits + beta * Q is a head with weight W + beta * W_Q (`shifted`), which any generator can serve.

Axes: see pipeline/credit/__init__.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config.schema import Credit, OfflineQ, Optimizer
from pipeline.models.models import backbone
from pipeline.seeds import cycle_indices
from pipeline.update.episode_credit import Layout, gae_by_episode
from pipeline.update.forward import Padded, Row, lowered, micro_batches, pad_rows, stack
from pipeline.update.learner import make_schedule
from pipeline.update.logprobs import chunk_tokens, slices


def expectile_loss(difference: Tensor, *, expectile: float) -> Tensor:
    """|expectile - 1(difference < 0)| * difference², elementwise, with difference = target - v.

    Its mean is minimal when v is that expectile of the targets: their mean at 0.5, approaching their maximum at 1.
    Source: IQL, arXiv:2110.06169 eq. 4.
    """
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


def regression_weights(advantages: Tensor, *, beta: float, max_weight: float) -> Tensor:
    """exp(beta * (Q - V)), at most max_weight: the weight of an imitated token.

    Source: AWR, arXiv:1910.00177 eq. 7; also IQL eq. 7, which clips at 100.
    """
    return (beta * advantages).exp().clamp(max=max_weight)


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """Result of one forward pass. q_BT: Q of the tokens taken. values_BS: (B, T + 1), as for a critic. nll_BT: of the
    language head. outside_BT: logsumexp of Q over the vocabulary minus the Q taken, which CQL penalises."""

    q_BT: Tensor
    values_BS: Tensor
    nll_BT: Tensor
    outside_BT: Tensor


class QValues(nn.Module):
    """A causal model with a V and a Q head on its last hidden state; both start at zero, and so does the shift."""

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None, chunk: int | None = None) -> None:
        """autocast: dtype of the backbone's matrix products; the heads are float32. chunk: tokens whose logits are held
        at once; None: by the size of the vocabulary."""
        super().__init__()
        self.model, self.autocast, self.chunk = model, autocast, chunk
        hidden = model.config.hidden_size
        self.q_head = nn.Linear(hidden, model.get_output_embeddings().weight.shape[0], bias=False)
        self.v_head = nn.Linear(hidden, 1)
        for parameter in (self.q_head.weight, self.v_head.weight, self.v_head.bias):
            nn.init.zeros_(parameter)
        self.to(next(model.parameters()).device)

    def forward(self, batch: Padded) -> HeadOutputs:
        with lowered(batch.device, self.autocast):
            output = backbone(self.model)(
                input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False
            )  # fmt: skip
        hidden_BLH = output.last_hidden_state.to(self.q_head.weight.dtype)
        lengths_B = batch.valid_BT.sum(1)
        positions_S = torch.arange(batch.valid_BT.shape[1] + 1, device=lengths_B.device)[None]
        within_BS = positions_S <= lengths_B[:, None]
        at_BS = torch.where(within_BS, batch.before_BT[:, :1] + positions_S, 0)
        hidden_BSH = hidden_BLH.gather(1, at_BS[..., None].expand(-1, -1, hidden_BLH.shape[-1]))
        values_BS = self.v_head(hidden_BSH).squeeze(-1).float().masked_fill(~within_BS, 0.0)
        hidden_NH, taken_N = hidden_BSH[:, :-1][batch.valid_BT], batch.targets_BT[batch.valid_BT]
        # a chunk of tokens x vocabulary at a time, computed again in the backward pass
        chunks = slices(len(taken_N), chunk_tokens(self.chunk, self.q_head.out_features))
        parts = [checkpoint(self._of_tokens, hidden_NH[c], taken_N[c], use_reentrant=False) for c in chunks]
        empty_BT = values_BS.new_zeros(batch.valid_BT.shape)
        q_BT, nll_BT, outside_BT = (
            empty_BT.masked_scatter(batch.valid_BT, torch.cat(x)) for x in zip(*parts, strict=True)
        )
        return HeadOutputs(q_BT, values_BS, nll_BT, outside_BT)

    def _of_tokens(self, hidden_NH: Tensor, taken_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) each: Q of the tokens taken, their negative log-likelihood, logsumexp of Q minus the Q taken."""
        q_NV = self.q_head(hidden_NH).float()
        q_N = q_NV.gather(1, taken_N[:, None])[:, 0]
        logits_NV = self.model.get_output_embeddings()(hidden_NH).float()
        return q_N, nn.functional.cross_entropy(logits_NV, taken_N, reduction="none"), q_NV.logsumexp(1) - q_N


@dataclass(frozen=True, slots=True)
class Logged:
    """Episodes to learn from. rewards: per row, (its T,). truncated: per episode, True if a limit ended it, so the
    target of its last token bootstraps from V; False if the episode ended there."""

    rows: list[Row]
    layout: Layout
    rewards: list[Tensor]
    truncated: list[bool]

    def part(self, chosen: Sequence[int]) -> Logged:
        """Some of the episodes, rows renumbered."""
        indices = [i for e in chosen for i in self.layout[e]]
        number = {index: new for new, index in enumerate(indices)}
        layout = [[number[i] for i in self.layout[e]] for e in chosen]
        return Logged(
            [self.rows[i] for i in indices],
            layout,
            [self.rewards[i] for i in indices],
            [self.truncated[e] for e in chosen],
        )


def fit(
    heads: QValues, logged: Logged, settings: OfflineQ, *, key: tuple[int | str, ...], log: Any = None
) -> dict[str, float]:
    """Train the heads and their backbone on logged episodes. log(step, figures) every tenth step.

    A step uses `batch` episodes; each pass over the data has a new order, which is a function of key.
    Returns the figures of the last step.
    """
    optimizer = make_optimizer(heads, settings.optimizer)
    schedule = make_schedule(optimizer, settings.optimizer, updates=settings.value_steps)
    slow = copy.deepcopy(heads).requires_grad_(False)
    size = min(settings.batch, len(logged.layout))
    figures: dict[str, float] = {}
    for step in range(settings.value_steps):
        chosen = cycle_indices(len(logged.layout), step * size, size, *key, "episodes")
        figures = value_step(heads, slow, optimizer, logged.part(chosen), settings)
        schedule.step()
        if log is not None and (step % 10 == 9 or step == settings.value_steps - 1):
            log(step + 1, figures)
    return figures


def make_optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        module.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def value_step(heads: QValues, slow: QValues, optimizer: Any, logged: Logged, settings: OfflineQ) -> dict[str, float]:
    """One optimizer step on Q, V, the language head and CQL; then the slow copy moves towards the heads.

    The targets of both losses come from the slow copy (IQL uses the current V in the target of Q), which saves a
    forward pass.
    """
    device = next(heads.parameters()).device
    batches = micro_batches(logged.rows, settings.tokens_per_microbatch)
    with torch.no_grad():
        known = _per_row(slow, logged.rows, batches, device)
    targets = td_targets(logged, [known[i][1] for i in range(len(logged.rows))], gamma=settings.gamma)
    tokens = max(sum(sum(r.mask) for r in logged.rows), 1)
    sums = dict.fromkeys(("q_loss", "v_loss", "nll", "cql"), 0.0)
    for indices in batches:
        padded = pad_rows([logged.rows[i] for i in indices], device)
        out = heads(padded)
        target_BT = stack([targets[i] for i in indices]).to(device)
        slow_BT = stack([known[i][0] for i in indices]).to(device)
        parts = {
            "q_loss": (out.q_BT - target_BT).square(),
            "v_loss": expectile_loss(slow_BT - out.values_BS[:, :-1], expectile=settings.expectile),
            "nll": out.nll_BT,
            "cql": settings.cql * out.outside_BT,
        }
        means = {name: x.masked_fill(~padded.mask_BT, 0.0).sum() / tokens for name, x in parts.items()}
        torch.stack(list(means.values())).sum().backward()
        for name, value in means.items():
            sums[name] += float(value.detach())
    nn.utils.clip_grad_norm_(heads.parameters(), settings.optimizer.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for own, target in zip(slow.parameters(), heads.parameters(), strict=True):
            own.lerp_(target, settings.target_rate)
    return sums


def td_targets(logged: Logged, values_with_last: Sequence[Tensor], *, gamma: float) -> list[Tensor]:
    """Per row, (its T,): r + gamma * V(next state), across masked gaps in a row and from one turn's row to the next."""
    last_E = torch.stack(
        [
            values_with_last[indices[-1]][-1] * truncated
            for indices, truncated in zip(logged.layout, logged.truncated, strict=True)
        ]
    )
    values = [v[:-1] for v in values_with_last]
    # with lambda 0 a GAE return is the one-step target
    _, targets = gae_by_episode(
        Credit(gamma=gamma, lam=0.0), logged.rows, logged.layout, logged.rewards, values, last_E
    )
    return targets


def _per_row(
    heads: QValues, rows: Sequence[Row], batches: Sequence[Sequence[int]], device: torch.device
) -> dict[int, tuple[Tensor, Tensor]]:
    """Index -> (its T,) Q of the tokens taken and (its T + 1,) values, on the CPU."""
    out = {}
    for indices in batches:
        output = heads(pad_rows([rows[i] for i in indices], device))
        for i, q, v in zip(indices, output.q_BT.cpu(), output.values_BS.cpu(), strict=True):
            out[i] = q[: len(rows[i].ids)], v[: len(rows[i].ids) + 1]
    return out


@torch.no_grad()
def token_advantages(heads: QValues, rows: Sequence[Row], *, budget: int) -> list[Tensor]:
    """Per row, (its T,): Q - V of the tokens taken."""
    device = next(heads.parameters()).device
    found = _per_row(heads, rows, micro_batches(rows, budget), device)
    return [found[i][0] - found[i][1][:-1] for i in range(len(rows))]


@torch.no_grad()
def shifted(heads: QValues, *, beta: float) -> Any:
    """A separate plain causal model that samples from softmax(logits + beta * (Q - V)); its head is untied."""
    model = copy.deepcopy(heads.model)
    old = model.get_output_embeddings()
    head = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None).to(old.weight)
    head.weight.copy_(old.weight + beta * heads.q_head.weight.to(old.weight.dtype))
    if old.bias is not None:
        head.bias.copy_(old.bias)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    return model
