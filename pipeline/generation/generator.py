"""Generators: token ids in, sampled token ids and their log-probs out. vLLM (vllm_engine) or transformers (hf_engine).

All draw from the same distribution: every sampling field is sent, log-probs are those of the distribution sampled
from, and each request carries its own seed, so a sample does not depend on what shares its batch or was sampled before
it. Weights are pushed after every update, and a canary (pipeline/update/canary.py) compares both sides.

Stop strings: base models and tag formats (`</answer>`) have no end token of their own. What was sampled up to and
including the token that completes a stop string is kept as the ids that were sampled and is trained on; what came after
it is dropped, so neither the mask nor a reward sees it. The cut is made on the sampled ids, outside the engines: all of
them agree, and a resumed run repeats it. It does not save the tokens that an engine sampled beyond the stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.config.schema import Sampling
from pipeline.data.completion_text import completion_text, completion_texts
from pipeline.records import Prompt, Rollout
from pipeline.seeds import derive


@dataclass(frozen=True, slots=True)
class Request:
    ids: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """ids: sampled ids with the end token where one came. logprobs: nats, one per id."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


OnDone = Callable[[int, Sample], None]


class Generator(Protocol):
    @property
    def name(self) -> str:
        """`vllm` or `transformers`."""
        ...

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        """One sample per request, in order. on_done gets (index, sample) of each as soon as it is drawn; after a
        restart of the engine it gets some twice."""
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-prob of every id but the first, at temperature 1, as this generator computes it."""
        ...

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load these weights. Names are a checkpoint's, the tied head's included."""
        ...


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


def sample_until_stop(
    generator: Generator,
    requests: Sequence[Request],
    sampling: Sampling,
    stop_token_ids: frozenset[int],
    tokenizer: Any,
    *,
    before: Sequence[Sequence[int]] | None = None,
    on_done: OnDone | None = None,
) -> list[Sample]:
    """`generator.sample`, each sample cut at the first of `sampling.stop`.

    before: per request, the ids of its completion that its prompt already ends with: a stop may begin among them.
    """
    if not sampling.stop:
        return generator.sample(requests, sampling, stop_token_ids, *([] if on_done is None else [on_done]))

    def cut(index: int, sample: Sample) -> Sample:
        return cut_at_stop(sample, sampling.stop, tokenizer, before=before[index] if before else ())

    more = [] if on_done is None else [lambda index, sample: on_done(index, cut(index, sample))]
    samples = generator.sample(requests, sampling, stop_token_ids, *more)
    return [cut(index, sample) for index, sample in enumerate(samples)]


def cut_at_stop(sample: Sample, stop: Sequence[str], tokenizer: Any, *, before: Sequence[int] = ()) -> Sample:
    """The shortest start of the sample whose text holds one of `stop`, finished; the sample itself if none does."""

    def holds(tokens: int) -> bool:
        text = tokenizer.decode([*before, *sample.ids[:tokens]], skip_special_tokens=False)
        return any(word in text for word in stop)

    if not sample.ids or not holds(len(sample.ids)):
        return sample
    least, most = 1, len(sample.ids)  # `most` tokens hold a stop
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if holds(middle) else (middle + 1, most)
    return Sample(sample.ids[:most], sample.logprobs[:most], finished=True)


def largest_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Largest |difference|; NaN where either side holds one."""
    gaps = [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)  # Python's max would pass over a NaN
