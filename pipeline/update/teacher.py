"""The teacher of on-policy distillation: a second model, or the policy itself shown more than its prompt.

It reads the completions that the policy sampled and says how likely each of their tokens is to it. Two forms:
`sampled`: log q - log p of the sampled token is its advantage, a one-sample estimate of minus the reverse KL;
`full`: the divergence of the whole distributions is part of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import Teacher as Settings
from pipeline.models.weights import base_of
from pipeline.records import Scored
from pipeline.update.divergence import TeacherStates, TeacherTopK
from pipeline.update.forward import Row, lowered, pad_rows, stack
from pipeline.update.reference import Copy
from pipeline.update.served_teacher import ServedTeacher

PromptIds = Callable[[Sequence[Scored]], list[tuple[int, ...] | None]]


class TeacherModel:
    """model: the teacher's weights, frozen or following the policy, or a server that has them. prompt_ids: its prompt
    for each row, or None. samples: rows per prompt."""

    def __init__(self, model: Copy | ServedTeacher, settings: Settings, prompt_ids: PromptIds, *, samples: int) -> None:
        self.model, self.settings, self.prompt_ids, self.samples = model, settings, prompt_ids, samples

    def rows(self, scored: Sequence[Scored], rows: Sequence[Row]) -> list[Row]:
        """The same completions after the teacher's prompts; masked where it has nothing to say."""
        prompts = self.prompt_ids(scored)
        if self.settings.shuffle:  # the control: a prompt's samples are judged as answers to the next prompt
            prompts = [*prompts[self.samples :], *prompts[: self.samples]]
        return [
            Row(row.prompt_ids if ids is None else ids, row.ids, (False,) * len(row.ids) if ids is None else row.mask)
            for ids, row in zip(prompts, rows, strict=True)
        ]

    def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """Per row, (its T,) log-probs at the sampling temperature."""
        return self.model.logprobs(rows)

    def lesson(self, rows: list[Row]) -> FullLesson | ServedLesson:
        """What form full compares these rows with."""
        if isinstance(self.model, Copy):
            return FullLesson(self.model, self.settings, rows)
        assert self.settings.top_k is not None  # config sees to it
        return ServedLesson(self.settings, rows, self.model.top_k(rows, self.settings.top_k))

    def after_step(self, step: int) -> None:
        self.model.after_step(step)

    def state(self) -> dict[str, Any]:
        return self.model.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state(state)


@dataclass(frozen=True, slots=True)
class FullLesson:
    """The teacher's rows of a step, compared token by token over the whole vocabulary."""

    model: Copy
    settings: Settings
    rows: list[Row]

    @torch.no_grad()
    def states(self, indices: Sequence[int], device: torch.device) -> TeacherStates:
        forward, settings = self.model.forward, self.settings
        forward.check_plain_head("teacher.form full")
        padded = pad_rows([self.rows[i] for i in indices], device)
        with lowered(device, forward.autocast):
            hidden_BTG = forward.for_head(forward.hidden(padded, last=False))[:, : padded.targets_BT.shape[1]]
        head = base_of(forward.model).get_output_embeddings()
        return TeacherStates(hidden_BTG, head.weight, head.bias, padded.mask_BT, settings.coef, settings.beta,
                             settings.top_k, settings.normalise)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServedLesson:
    """The teacher's k most likely tokens before each token of the rows of a step: per row, ids and log-probs (T, K)."""

    settings: Settings
    rows: list[Row]
    top_k: list[tuple[Tensor, Tensor]]

    def states(self, indices: Sequence[int], device: torch.device) -> TeacherTopK:
        ids, logprobs = zip(*(self.top_k[i] for i in indices), strict=True)
        width = max(x.shape[-1] for x in ids)  # a row of which the teacher says nothing has one column
        mask_BT = stack([self.rows[i].mask for i in indices]).bool()
        ids_BTK, logprobs_BTK = padded_to(ids, width, 0), padded_to(logprobs, width, -torch.inf)
        coef, beta, normalise = self.settings.coef, self.settings.beta, self.settings.normalise
        return TeacherTopK(
            ids_BTK.to(device), logprobs_BTK.to(device), mask_BT.to(device), coef, beta, normalise
        )  # fmt: skip


def padded_to(rows: Sequence[Tensor], width: int, value: float) -> Tensor:
    """(B, T, width) of tensors (T, K), with `value` in the added columns and after each row's end."""
    wide = [torch.nn.functional.pad(x, (0, width - x.shape[-1]), value=value) for x in rows]
    return torch.nn.utils.rnn.pad_sequence(wide, batch_first=True, padding_value=value)


def reverse_kl_advantages(
    advantages: Sequence[Tensor], policy: Sequence[Tensor], teacher: Sequence[Tensor], rows: Sequence[Row], *,
    coef: float, reward_coef: float,
) -> list[Tensor]:  # fmt: skip
    """Per row, (its T,): reward_coef * A + coef * (log q - log p) of each sampled token, q the teacher, p the policy
    that sampled; without the second term on tokens that the teacher's rows mask.

    Its policy gradient is that of the reverse KL of each token's distribution, the prefix held fixed (discount 0).
    Source: thinkingmachines.ai/blog/on-policy-distillation (2025).
    """
    out = []
    for a_T, p_T, q_T, row in zip(advantages, policy, teacher, rows, strict=True):
        hint_T = (q_T - p_T).masked_fill(~torch.tensor(row.mask, dtype=torch.bool), 0.0)
        out.append(reward_coef * a_T + coef * hint_T)
    return out
