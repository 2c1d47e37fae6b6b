"""What sft, feedme and conditioned share: examples as token ids, and TRL's SFTTrainer with an optional KL to the start.

With labels in the prompt the KL compares two prompts of one question: the policy reads the labelled one, the base the
unlabelled one, and both are compared on the completion (Quark, arXiv:2205.13636 eq. 2, removes the label likewise).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.encoding import Demonstrations
from pipeline.data.lazy_rows import Mapped
from pipeline.distributed import ranks, sharding
from pipeline.models import models
from pipeline.models.models import backbone
from pipeline.models.weights import base_of
from pipeline.records import Scored
from pipeline.stages.context import Context
from pipeline.update.forward import add_gradients_in_place, plain_head
from pipeline.update.logprobs import chunked_token_figures

IGNORED = -100  # the label that transformers leaves out of the loss
FILL = {"input_ids": 0, "labels": IGNORED, "reference_ids": 0, "reference_labels": IGNORED}


@dataclass(frozen=True, slots=True)
class ImitationRow:
    """One demonstration: loss on the trained ids of `completion_ids`.

    unlabelled_ids: the prompt as the base reads it where that differs from prompt_ids (without a condition label).
    trained: per completion id, whether it is imitated; None: all. Later questions and tool results are context.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    unlabelled_ids: tuple[int, ...] | None = None
    trained: tuple[bool, ...] | None = None

    @property
    def labels(self) -> list[int]:
        """Of the completion: its ids, IGNORED where nothing is imitated."""
        flags = self.trained or (True,) * len(self.completion_ids)
        return [i if flag else IGNORED for i, flag in zip(self.completion_ids, flags, strict=True)]


def sampled_rows(episode: Sequence[Scored]) -> list[ImitationRow]:
    """The rows of a completion or an episode as they were sampled; what tools answered is context."""
    return [ImitationRow(s.rollout.prompt.ids, s.rollout.ids, trained=s.rollout.sampled) for s in episode]


def lengths_of(examples: Sequence[ImitationRow]) -> NDArray[np.integer]:
    """(N,) numbers of tokens."""
    if isinstance(examples, Mapped) and isinstance(examples.base, Demonstrations):
        return examples.base.lengths
    return np.array([len(e.prompt_ids) + len(e.completion_ids) for e in examples], np.int64)


def as_dataset(
    examples: Sequence[ImitationRow], *, reference: bool, chosen: Sequence[int] | NDArray[np.integer] | None = None
) -> Any:
    """Examples as a data set of token ids and labels, each row computed when it is read. chosen: indices; None = all.

    The trainer takes nothing but a `datasets.Dataset`, and its `set_transform` would pickle all examples to hash them.
    """
    from datasets import Dataset

    indices = np.arange(len(examples)) if chosen is None else chosen

    class Rows(Dataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> dict[str, list[int]]:
            return columns_of(examples[int(indices[index])], reference=reference)

        def __getitems__(self, batch: Sequence[int]) -> list[dict[str, list[int]]]:
            return [self[i] for i in batch]

        def __iter__(self) -> Iterator[dict[str, list[int]]]:
            return map(self.__getitem__, range(len(self)))

    return Rows.from_dict({"example": indices})


def columns_of(example: ImitationRow, *, reference: bool) -> dict[str, list[int]]:
    """One row for the trainer. reference: also with the prompt that the frozen model reads."""

    def columns(prompt: tuple[int, ...]) -> tuple[list[int], list[int]]:
        return [*prompt, *example.completion_ids], [IGNORED] * len(prompt) + example.labels

    out = dict(zip(("input_ids", "labels"), columns(example.prompt_ids), strict=True))
    if reference:
        other = columns(example.unlabelled_ids or example.prompt_ids)
        out |= zip(("reference_ids", "reference_labels"), other, strict=True)
    return out


def pad(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows of a data set as a batch, padded on the right: one tensor per column."""
    out = {}
    for name, fill in FILL.items():
        if name in rows[0]:
            width = max(len(row[name]) for row in rows)
            out[name] = torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
    for ids, mask in (("input_ids", "attention_mask"), ("reference_ids", "reference_mask")):
        if ids in out:
            width = out[ids].shape[1]
            out[mask] = torch.tensor([[1] * len(row[ids]) + [0] * (width - len(row[ids])) for row in rows])
    return out


def imitator(ctx: Context, kl_coef: float, anchor: str) -> Any:
    """TRL's SFTTrainer; with kl_coef a subclass that adds the KL from the frozen model at `anchor` to its loss."""
    from trl import SFTTrainer

    if not kl_coef:

        class Imitator(SFTTrainer):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                tile_head(self.model)

        return Imitator
    base = models.load_policy(anchor, ctx.cfg.model).eval().requires_grad_(False)

    class WithKl(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            assert not return_outputs, "evaluation inside the trainer is not used here"
            ours = completion_logprobs(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
            targets = inputs["labels"][:, 1:][inputs["labels"][:, 1:] != IGNORED]
            with torch.no_grad():
                theirs = completion_logprobs(
                    base, inputs["reference_ids"], inputs["reference_mask"], inputs["reference_labels"]
                )
            total = imitation_loss(ours, theirs, targets, kl_coef=kl_coef)
            if num_items_in_batch is None:
                return total / len(targets)
            # the count is over all ranks, and DDP or FSDP takes the mean over them
            return total / num_items_in_batch * self.accelerator.num_processes

    return WithKl


def tile_head(model: Any) -> None:
    """On a CPU, let TRL's `model(labels=..., fused_lm_head=True)` compute the log-probs of trained tokens as the policy
    stages do (pipeline/update/logprobs.py).

    TRL's own fused head applies the vocabulary to every position there, of prompts and padding too. It is left to TRL
    on a GPU, for sharded weights, for a mixture whose routers are in the loss, and where logits are not head(hidden).
    """
    from trl.trainer.utils import FusedCausalLMOutput

    base = base_of(model)
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    if base.device.type != "cpu" or sharding.is_sharded() or not plain_head(model):
        return
    if getattr(config, "output_router_logits", False):
        return
    if ranks.world() == 1:
        add_gradients_in_place(model)
    of_trl = base.forward

    @functools.wraps(of_trl)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            given = {} if labels is None else {"labels": labels}
            return of_trl(*args, **given, fused_lm_head=fused_lm_head, **kwargs)
        count = kwargs.pop("num_items_in_batch", None)
        hidden_BLH = backbone(base)(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        if torch.is_autocast_enabled("cpu"):  # the residual stream is float32 under autocast
            hidden_BLH = hidden_BLH.to(torch.get_autocast_dtype("cpu"))
        targets_BT = labels[:, 1:]
        mask_BT = targets_BT != IGNORED
        logprobs_BT, entropy_BT, likeliest_BT = chunked_token_figures(
            hidden_BLH[:, :-1], head.weight, targets_BT, temperature=1.0, bias_V=head.bias, mask_BT=mask_BT
        )
        loss = -logprobs_BT.sum() / (mask_BT.sum().clamp(min=1) if count is None else count)
        return FusedCausalLMOutput(
            loss=loss, log_probs=logprobs_BT, entropy=entropy_BT, is_top1=likeliest_BT, label_mask=mask_BT
        )

    base.forward = forward


def completion_logprobs(model: Any, ids_BL: Tensor, mask_BL: Tensor, labels_BL: Tensor) -> Tensor:
    """(N, V) float32 log-probs at the positions that predict a labelled token, rows in order."""
    logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    return logits_BLV[:, :-1][labels_BL[:, 1:] != IGNORED].float().log_softmax(-1)


def imitation_loss(ours_NV: Tensor, base_NV: Tensor, targets_N: Tensor, *, kl_coef: float) -> Tensor:
    """Sum over tokens of -log p(target) + kl_coef * KL(base || policy), the KL exact over the vocabulary."""
    nll_N = -ours_NV.gather(-1, targets_N[:, None])[:, 0]
    kl_N = (base_NV.exp() * (base_NV - ours_NV)).sum(-1)
    return (nll_N + kl_coef * kl_N).sum()
