"""The value model: V(s_t) read at the position before token t, and once more after the last.

On a backbone of its own (`ValueModel`), or as a second head on the policy's (`SharedCritic`). Either head starts at
zero, so the first advantages are the plain rewards to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.load import ConfigError
from pipeline.models.models import backbone
from pipeline.update import packing
from pipeline.update.forward import (
    CompletionLogprobs,
    Padded,
    Row,
    hidden_states,
    lowered,
    micro_batches,
    packs,
    pad_rows,
    plain_head,
)


def zero_head(hidden_size: int) -> nn.Linear:
    head = nn.Linear(hidden_size, 1, bias=True)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def values_at(head: nn.Linear, hidden_BSH: Tensor, batch: Padded) -> Tensor:
    """(B, T + 1): V before each completion token, then V after the last one of each row, in the column of that row's
    own length, with which a truncated end is bootstrapped. 0 beyond it."""
    with torch.autocast(hidden_BSH.device.type, enabled=False):  # a value needs full precision, like a log-prob
        values_BS = head(hidden_BSH.to(head.weight.dtype)).squeeze(-1).float()
    return values_BS.masked_fill(~batch.within_BS, 0.0)


class ValueModel(nn.Module):
    """A transformer of its own with a scalar head; forward gives what `values_at` does."""

    def __init__(self, transformer: Any, hidden_size: int, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.transformer, self.autocast = transformer, autocast
        self.head = zero_head(hidden_size)
        self.packs = packing.enable(transformer)

    def forward(self, batch: Padded) -> Tensor:
        with lowered(batch.device, self.autocast):
            hidden_BSH = hidden_states(self.transformer, batch, packs=self.packs)
        return values_at(self.head, hidden_BSH, batch)


class SharedCritic(CompletionLogprobs):
    """A policy that also gives values: forward is (log-probs, entropies, values), from one pass of one backbone.

    frozen_body: values send no gradient into the policy, as while only the critic learns.
    """

    def __init__(
        self, model: Any, *, temperature: float, autocast: torch.dtype | None = None, float32_head: bool = False
    ) -> None:
        super().__init__(model, temperature=temperature, autocast=autocast, float32_head=float32_head)
        if not plain_head(model):
            raise ConfigError(["critic.shared: this model's logits are more than a linear head; give shared: false"])
        self.value_head = zero_head(model.config.hidden_size).to(next(model.parameters()).device)
        self.frozen_body = False

    def scored(self, batch: Padded, temperature: float) -> tuple[Tensor, ...]:
        hidden_BSH = self.hidden(batch)
        input_BSH = hidden_BSH.detach() if self.frozen_body else hidden_BSH
        return *self.from_hidden(hidden_BSH, batch, temperature), values_at(self.value_head, input_BSH, batch)


def from_model(model: Any, *, autocast: torch.dtype | None = None) -> ValueModel:
    """A critic on the backbone of a causal model or of a reward model; the model's own head is dropped."""
    transformer = backbone(model)
    value = ValueModel(transformer, model.config.hidden_size, autocast=autocast)
    return value.to(next(transformer.parameters()).device)


@torch.no_grad()
def values_of(critic: nn.Module, rows: Sequence[Row], *, budget: int, device: torch.device) -> list[Tensor]:
    """Per row, (its T + 1,) values on the CPU, in the order of rows."""
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for indices in micro_batches(rows, budget, packs=packs(critic)):
        values_BS = critic(pad_rows([rows[i] for i in indices], device))
        for i, values in zip(indices, values_BS.cpu(), strict=True):
            out[i] = values[: len(rows[i].ids) + 1].clone()
    return out


@torch.no_grad()
def logprobs_and_values(
    policy: nn.Module, rows: Sequence[Row], *, budget: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Per row, (its T,) log-probs and (its T + 1,) values of a `SharedCritic`, from one pass."""
    out: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(rows)
    for indices in micro_batches(rows, budget, packs=packs(policy)):
        logprobs_BT, _, values_BS = policy(pad_rows([rows[i] for i in indices], device))
        for i, logprobs, values in zip(indices, logprobs_BT.cpu(), values_BS.cpu(), strict=True):
            out[i] = logprobs[: len(rows[i].ids)].clone(), values[: len(rows[i].ids) + 1].clone()
    return out
