"""The training rows of an episode: what was sampled, kept as sampled, and what the policy read in between.

As long as each prompt extends the ids before it, an episode is one row, with `sampled` False on what stands between the
turns. A prompt that extends no earlier row begins a new one, numbered by `turn`: each row is then exactly what was
sampled from what the policy read. A prompt with the same text as a row but another tokenization of it extends the row:
the sampled ids stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.data.completion_text import completion_text
from pipeline.records import Prompt, Rollout


@dataclass(slots=True)
class EpisodeRow:
    """One training row while its episode goes on."""

    prompt_ids: tuple[int, ...]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    finished: bool = False

    def add(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """logprobs: None for ids that were not sampled."""
        self.ids += ids
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)
        self.sampled += [logprobs is not None] * len(ids)

    @property
    def all_ids(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.ids)


@dataclass(frozen=True, slots=True)
class Continued:
    """row: the row that a prompt extends, None if it begins one. between: ids between the row and the next turn."""

    row: EpisodeRow | None
    between: tuple[int, ...]
    prompt_ids: tuple[int, ...]


def continued(
    rows: Iterable[EpisodeRow], rendered: Sequence[int], text: Callable[[], str], tokenizer: Any,
    encode: Callable[[str], Sequence[int]],
) -> Continued:  # fmt: skip
    """Which of the rows, latest first, the rendered ids extend, and the ids that the policy then reads.

    text: the rendering as text. encode: text -> ids without special tokens added.
    """
    ids, newest = tuple(rendered), list(rows)[::-1]
    for row in newest:
        kept = row.all_ids
        if ids[: len(kept)] == kept:
            return Continued(row, ids[len(kept) :], ids)
    if newest:
        full = text()
        for row in newest:
            kept = row.all_ids
            kept_text = tokenizer.decode(list(kept), skip_special_tokens=False)
            if full.startswith(kept_text):
                between = tuple(encode(full[len(kept_text) :]))
                return Continued(row, between, (*kept, *between))
    return Continued(None, (), ids)


def rollouts_of(
    rows: Sequence[EpisodeRow], start: Prompt, *, sample: int, tokenizer: Any, text: str, record: Mapping[str, Any]
) -> list[Rollout]:
    """The rows of one episode; the last one has its record and, unless `text` is empty, its text.

    start: the prompt of the episode; a row's own has its index, and the ids of the row.
    """
    out = []
    for number, row in enumerate(rows):
        is_last = number + 1 == len(rows)
        own_text = text if is_last and text else completion_text(tokenizer, row.ids, row.prompt_ids)
        own_prompt = start if start.ids == row.prompt_ids else replace(start, ids=row.prompt_ids, row={})
        out.append(Rollout(
            own_prompt, sample, tuple(row.ids), tuple(row.logprobs), own_text, row.finished,
            None if all(row.sampled) else tuple(row.sampled), number, record if is_last else None,
        ))  # fmt: skip
    return out


__all__ = ["Continued", "EpisodeRow", "continued", "rollouts_of"]
