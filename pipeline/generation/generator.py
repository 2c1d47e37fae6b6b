"""Generators: token ids in, sampled token ids and their log-probs out. vLLM (vllm_engine) or transformers (hf_engine).

Both draw from the same distribution: every sampling field is sent, log-probs are those of the distribution sampled
from, and each request carries its own seed, so a sample does not depend on what shares its batch or was sampled before
it. Weights are pushed after every update, and a canary (pipeline/update/canary.py) compares both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.config.schema import Sampling
from pipeline.data.completion_text import completion_text, completion_texts
from pipeline.generation.generator_types import Generator as Generator
from pipeline.generation.generator_types import OnDone as OnDone
from pipeline.generation.generator_types import Request as Request
from pipeline.generation.generator_types import Sample as Sample
from pipeline.generation.stop_strings import sample_until_stop
from pipeline.models.models import batches_by_tokens, pad_right
from pipeline.records import Prompt, Rollout
from pipeline.seeds import derive

LOGITS = 2**26  # numbers of one micro-batch of `sequence_logprobs`: 256 MiB in float32


def rollouts(
    generator: Generator,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int,
    key: tuple[int | str, ...],
    tokenizer: Any,
    stop_token_ids: frozenset[int],
    first: int = 0,
    on_done: Callable[[int, Rollout], None] | None = None,
) -> list[Rollout]:
    """`samples` rollouts of each prompt, prompt-major. The seed of each is a function of (key, index, sample).

    first: the index of the first prompt, where these are a rank's share of more. on_done: gets (number, rollout) of
    each as soon as it is drawn, in any order and of some twice.
    """
    requests = [
        Request(prompt.ids, derive(*key, index, sample), sampling.max_tokens)
        for index, prompt in enumerate(prompts, first)
        for sample in range(samples)
    ]

    def rollout(i: int, s: Sample, text: str) -> Rollout:
        return Rollout(prompts[i // samples], i % samples, s.ids, s.logprobs, text, s.finished)

    def report(i: int, s: Sample) -> None:
        assert on_done is not None
        on_done(i, rollout(i, s, completion_text(tokenizer, s.ids, prompts[i // samples].ids)))

    drawn = sample_until_stop(
        generator, requests, sampling, stop_token_ids, tokenizer, on_done=None if on_done is None else report
    )
    texts = completion_texts(tokenizer, [s.ids for s in drawn], [prompts[i // samples].ids for i in range(len(drawn))])
    return [rollout(i, s, text) for i, (s, text) in enumerate(zip(drawn, texts, strict=True))]


def continuations(
    generator: Generator,
    cuts: Sequence[tuple[Rollout, int, int]],
    sampling: Sampling,
    *,
    samples: int,
    key: tuple[int | str, ...],
    tokenizer: Any,
    stop_token_ids: frozenset[int],
) -> list[Rollout]:
    """For each cut (rollout, at, index): `samples` rollouts that keep its first `at` tokens and are sampled on from
    there, each up to the same limit. Seeds are a function of (key, index, sample)."""
    requests = [
        Request((*r.prompt.ids, *r.ids[:at]), derive(*key, index, sample), sampling.max_tokens - at)
        for r, at, index in cuts
        for sample in range(samples)
    ]
    kept = [(r, at, sample) for r, at, _ in cuts for sample in range(samples)]
    drawn = sample_until_stop(
        generator, requests, sampling, stop_token_ids, tokenizer, before=[r.ids[:at] for r, at, _ in kept]
    )
    ids = [(*r.ids[:at], *s.ids) for (r, at, _), s in zip(kept, drawn, strict=True)]
    texts = completion_texts(tokenizer, ids, [r.prompt.ids for r, _, _ in kept])
    return [
        Rollout(r.prompt, sample, all_ids, (*r.logprobs[:at], *s.logprobs), text, s.finished)
        for (r, at, sample), s, all_ids, text in zip(kept, drawn, ids, texts, strict=True)
    ]


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


def largest_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Largest |difference|; NaN where either side holds one."""
    gaps = [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)  # Python's max would pass over a NaN
