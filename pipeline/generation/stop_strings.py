"""Stop strings: a completion ends with the token that completes one of them.

Base models and tag formats (`</answer>`) have no end token of their own. What was sampled up to and including the stop
is kept as the ids that were sampled and is trained on; what came after it is dropped, so neither the mask nor a reward
sees it. The cut is made on the sampled ids, outside the engines: all of them agree, and a resumed run repeats it. It
does not save the tokens that an engine sampled beyond the stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config.schema import Sampling
from pipeline.generation.generator_types import Generator, OnDone, Request, Sample


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
