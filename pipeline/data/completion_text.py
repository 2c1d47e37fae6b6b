"""Completion ids -> the text that verifiers and people read: with its thinking tags, and the one its prompt left open.

`decode(skip_special_tokens=True)` alone loses two things a verifier must see:
  - thinking tags that are special tokens of the tokenizer (`[THINK]`): without them the thinking has no end;
  - `<think>` at the end of the rendered prompt, where chat templates of reasoning models put it: a completion that was
    cut off in its thinking then looks like an answer.
Ids stay the truth: this text is never tokenized again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from verifiers import ANSWER_TAGS, THINKING_TAGS, opened_thinking

KEPT_TAGS = frozenset(tag for pair in (*THINKING_TAGS, ANSWER_TAGS) for tag in pair)
TAIL_TOKENS = 48  # of a prompt: the tag and what a template writes after it


def completion_texts(
    tokenizer: Any, completions: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]
) -> list[str]:
    """One text per completion. prompts: the rendered prompt ids of each, whose open thinking tag comes first."""
    dropped = _dropped_ids(tokenizer) if hasattr(tokenizer, "added_tokens_decoder") else None
    if dropped is None:
        texts = tokenizer.batch_decode([list(ids) for ids in completions], skip_special_tokens=True)
    else:
        kept = [[i for i in ids if i not in dropped] for ids in completions]
        texts = tokenizer.batch_decode(kept, skip_special_tokens=False)
    tails = [tuple(ids[-TAIL_TOKENS:]) for ids in prompts]
    distinct = list(dict.fromkeys(tails))
    decoded = tokenizer.batch_decode([list(tail) for tail in distinct], skip_special_tokens=False)
    opened = {tail: opened_thinking(text) for tail, text in zip(distinct, decoded, strict=True)}
    return [opened[tail] + text for tail, text in zip(tails, texts, strict=True)]


def completion_text(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int]) -> str:
    """The text of one completion; see completion_texts."""
    return completion_texts(tokenizer, [ids], [prompt])[0]


@lru_cache(maxsize=8)
def _dropped_ids(tokenizer: Any) -> frozenset[int] | None:
    """The special tokens to leave out of the text; None if no thinking tag is among them."""
    special = {int(i): str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not KEPT_TAGS & set(special.values()):
        return None
    return frozenset(i for i, content in special.items() if content not in KEPT_TAGS)
