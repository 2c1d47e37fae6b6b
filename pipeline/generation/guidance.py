"""Classifier-free guidance in generation, arXiv:2207.12598: samples from the logits
unlabelled + scale * (labelled - unlabelled).

With scale 1 only the labelled prompt counts, with 0 only the unlabelled one; above 1 the label's effect is exaggerated.
In measurements on the demo, 1.25 changes little and 2 hurts, so guidance is off by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.distributed import ranks
from pipeline.generation.generator import OnDone, Request, Sample
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.generation.seeded_sampler import SeededSampler

Ids = tuple[int, ...]


class Guided(TransformersGenerator):
    """Runs two rows per answer, the labelled and the unlabelled prompt, with the same sampled tokens.

    unlabelled: labelled prompt ids -> the same prompt's ids without a label. Uses transformers: vLLM does not mix rows.
    With several ranks, each samples its share and all get every sample.
    """

    def __init__(
        self, model_dir: str, model: Model, generate: Generate, *, unlabelled: Mapping[Ids, Ids], scale: float
    ) -> None:
        super().__init__(model_dir, model, generate)
        self.unlabelled, self.scale = unlabelled, scale

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        if ranks.world() == 1:
            return super().sample(requests, sampling, stop_token_ids, on_done)
        own = super().sample
        return ranks.mapped(lambda mine: own(mine, sampling, stop_token_ids), requests)

    def _batch(self, requests: Sequence[Request], sampling: Sampling, stop_token_ids: frozenset[int]) -> list[Sample]:
        where = self.model.device
        step_BL, mask_BL = left_padded([*(r.ids for r in requests), *(self.unlabelled[r.ids] for r in requests)], where)
        sampler = SeededSampler(sampling, [r.seed for r in requests], [r.ids for r in requests])
        taken: list[list[int]] = [[] for _ in requests]
        open_rows = set(range(len(requests)))
        cache: Any = None
        while open_rows:
            # positions come from the mask, so that left padding does not shift a row
            places_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)[:, -step_BL.shape[1] :]
            out = self.model(input_ids=step_BL, attention_mask=mask_BL, position_ids=places_BL,
                             past_key_values=cache, use_cache=True)  # fmt: skip
            cache = out.past_key_values
            labelled_BV, unlabelled_BV = out.logits[:, -1].float().chunk(2)
            chosen_B = sampler(step_BL, guided_logits(labelled_BV, unlabelled_BV, self.scale)).argmax(-1)
            for row, token in enumerate(chosen_B.tolist()):
                if row in open_rows:
                    taken[row].append(token)
                    if token in stop_token_ids or len(taken[row]) >= requests[row].max_tokens:
                        open_rows.remove(row)
            step_BL = chosen_B.repeat(2)[:, None]
            mask_BL = torch.cat([mask_BL, torch.ones_like(step_BL)], dim=1)
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        return [Sample(tuple(ids), tuple(row[: len(ids)]), finished=ids[-1] in stop_token_ids)
                for ids, row in zip(taken, logprobs, strict=True)]  # fmt: skip


def guided_logits(labelled_BV: Tensor, unlabelled_BV: Tensor, scale: float) -> Tensor:
    """(B, V) mixture of log-probs; both sides are normalized first, so that constant offsets cancel."""
    labelled, unlabelled = labelled_BV.log_softmax(-1), unlabelled_BV.log_softmax(-1)
    return labelled if scale == 1 else unlabelled + scale * (labelled - unlabelled)


def left_padded(rows: Sequence[Ids], where: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=where)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=where)
    return ids, mask
