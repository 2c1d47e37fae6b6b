"""The value model: V(s_t) read at the position before token t, and once more after the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import backbone
from pipeline.update.forward import Padded, Row, micro_batches, pad_rows


class ValueModel(nn.Module):
    """A transformer with a scalar head that starts at zero: the first advantages are then the plain rewards to go.

    forward gives (B, T + 1): V before each completion token, then V after the last one of each row (in the column of
    that row's own length), which is what a truncated end is bootstrapped with.
    """

    def __init__(self, transformer: Any, hidden_size: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = nn.Linear(hidden_size, 1, bias=True)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Padded) -> Tensor:
        hidden_BLH = self.transformer(
            input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False
        ).last_hidden_state
        values_BL = self.head(hidden_BLH.to(self.head.weight.dtype)).squeeze(-1).float()
        lengths_B = batch.valid_BT.sum(1)
        places = torch.arange(batch.valid_BT.shape[1] + 1, device=lengths_B.device)[None]
        start_B1 = batch.before_BT[:, :1]
        within = places <= lengths_B[:, None]
        return values_BL.gather(1, torch.where(within, start_B1 + places, 0)).masked_fill(~within, 0.0)


def from_model(model: Any) -> ValueModel:
    """A critic on the backbone of a causal model or of a reward model; the model's own head is dropped."""
    transformer = backbone(model)
    value = ValueModel(transformer, model.config.hidden_size)
    return value.to(next(transformer.parameters()).device)


@torch.no_grad()
def values_of(critic: nn.Module, rows: Sequence[Row], *, budget: int, where: torch.device) -> list[Tensor]:
    """Per row, (its T + 1,) values on the CPU, in the order of rows."""
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for places in micro_batches(rows, budget):
        values_BS = critic(pad_rows([rows[i] for i in places], where))
        for i, values in zip(places, values_BS.cpu(), strict=True):
            out[i] = values[: len(rows[i].ids) + 1]
    return out
