"""The generator of machines without vLLM: transformers, on a copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation.generator import OnDone, Request, Sample, sequence_logprobs
from pipeline.generation.seeded_sampler import SeededSampler
from pipeline.models.models import load_policy
from pipeline.models.weights import copy_into


class TransformersGenerator:
    """The same distribution through transformers, for machines without vLLM. Holds a copy of the weights."""

    name = "transformers"

    def __init__(self, model_dir: str, model: Model, generate: Generate) -> None:
        self.model = load_policy(model_dir, model).eval()
        self.batch = generate.batch

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], sampling: Sampling, ends: frozenset[int], on_done: OnDone | None = None
    ) -> list[Sample]:
        out: list[Sample | None] = [None] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].ids), i))
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            for place, sample in zip(places, self._batch([requests[i] for i in places], sampling, ends), strict=True):
                out[place] = sample
                if on_done is not None:
                    on_done(place, sample)
        return [s for s in out if s is not None]

    def _batch(self, requests: Sequence[Request], sampling: Sampling, ends: frozenset[int]) -> list[Sample]:
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(len(r.ids) for r in requests)
        pad = min(ends)
        ids = torch.tensor([[pad] * (width - len(r.ids)) + list(r.ids) for r in requests], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests], device=self.model.device)
        limit = max(r.max_tokens for r in requests)
        noise = SeededSampler(sampling, [r.seed for r in requests], [r.ids for r in requests])
        self.model.generation_config = GenerationConfig(  # replaced, for unset fields would be filled from the model's
            do_sample=False, max_new_tokens=limit, eos_token_id=sorted(ends), pad_token_id=pad, use_cache=True
        )  # fmt: skip
        grown = self.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([noise]), use_cache=True
        )
        logprobs = torch.stack(noise.logprobs, dim=1).tolist()
        out = []
        for request, row, row_logprobs in zip(requests, grown[:, width:].tolist(), logprobs, strict=True):
            length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            length = min(length, request.max_tokens)
            taken = tuple(row[:length])
            out.append(Sample(taken, tuple(row_logprobs[:length]), finished=taken[-1] in ends))
        return out

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return sequence_logprobs(self.model, sequences)

    @torch.no_grad()
    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        copy_into(self.model, weights)
