"""The transformers generator, for machines without vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation.generator import OnDone, Request, Sample
from pipeline.generation.lean_decoder import LeanDecoder
from pipeline.generation.seeded_sampler import SeededSampler
from pipeline.models.models import batches_by_tokens, load_policy, pad_right
from pipeline.models.weights import copy_into

LOGITS = 2**26  # numbers of one micro-batch of `sequence_logprobs`: 256 MiB in float32


class TransformersGenerator:
    """Samples the same distribution as vLLM does. Holds its own copy of the weights."""

    name = "transformers"

    def __init__(self, model_dir: str, model: Model, generate: Generate) -> None:
        self.model = load_policy(model_dir, model).eval()
        self.batch = generate.batch
        self.decoder: LeanDecoder | None = None
        self.decoder_of: Any = None  # the model that the decoder was made for

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        out: list[Sample | None] = [None] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].ids), i))
        for start in range(0, len(order), self.batch):
            batch = order[start : start + self.batch]
            samples = self._batch([requests[i] for i in batch], sampling, stop_token_ids)
            for index, sample in zip(batch, samples, strict=True):
                out[index] = sample
                if on_done is not None:
                    on_done(index, sample)
        return [s for s in out if s is not None]

    def _batch(self, requests: Sequence[Request], sampling: Sampling, stop_token_ids: frozenset[int]) -> list[Sample]:
        if self.decoder_of is not self.model:
            self.decoder, self.decoder_of = LeanDecoder.of(self.model), self.model
        if self.decoder is None:
            return self._generate(requests, sampling, stop_token_ids)
        prompts = [r.ids for r in requests]
        sampler = SeededSampler(sampling, [r.seed for r in requests], prompts)
        drawn = self.decoder.sample(prompts, [r.max_tokens for r in requests], sampler, stop_token_ids)
        return [Sample(tuple(ids), tuple(logprobs), finished=ids[-1] in stop_token_ids)
                for ids, logprobs in zip(*drawn, strict=True)]  # fmt: skip

    def _generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_token_ids: frozenset[int]
    ) -> list[Sample]:
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(len(r.ids) for r in requests)
        pad = min(stop_token_ids)
        ids = torch.tensor([[pad] * (width - len(r.ids)) + list(r.ids) for r in requests], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests], device=self.model.device)
        limit = max(r.max_tokens for r in requests)
        sampler = SeededSampler(sampling, [r.seed for r in requests], [r.ids for r in requests])
        # replaced as a whole: unset fields would be filled from the model's own
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=limit, eos_token_id=sorted(stop_token_ids), pad_token_id=pad, use_cache=True
        )  # fmt: skip
        generated = self.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([sampler]), use_cache=True
        )
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        out = []
        for request, row, row_logprobs in zip(requests, generated[:, width:].tolist(), logprobs, strict=True):
            length = next((i + 1 for i, token in enumerate(row) if token in stop_token_ids), len(row))
            length = min(length, request.max_tokens)
            taken = tuple(row[:length])
            out.append(Sample(taken, tuple(row_logprobs[:length]), finished=taken[-1] in stop_token_ids))
        return out

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return sequence_logprobs(self.model, sequences)

    @torch.no_grad()
    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        copy_into(self.model, weights)


@torch.no_grad()
def sequence_logprobs(model: Any, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-prob of every id but the first of each sequence, at temperature 1, in float32."""
    tokens = max(LOGITS // model.config.get_text_config().vocab_size, 1)
    out: list[list[float]] = [[] for _ in sequences]
    for batch in batches_by_tokens([len(s) for s in sequences], tokens):
        rows = [sequences[i] for i in batch]
        ids = pad_right(rows, 0, dtype=torch.long, device=model.device)
        mask = pad_right([[1] * len(r) for r in rows], 0, dtype=torch.long, device=model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].tolist()
        for i, values in zip(batch, picked, strict=True):
            out[i] = values[: len(sequences[i]) - 1]
    return out
