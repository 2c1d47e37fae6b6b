"""Completion ids -> the text that verifiers and people read: with its thinking tags, and the one its prompt left open.

`decode(skip_special_tokens=True)` alone loses two things a verifier must see:
  - thinking tags that are special tokens of the tokenizer (`[THINK]`): without them the thinking has no end;
  - `<think>` at the end of the rendered prompt, where chat templates of reasoning models put it: a completion that was
    cut off in its thinking then looks like an answer.
Models that think in a channel (gpt-oss, Muse Glimmer, Gemma 4) get the tags `<think>` and `</think>` for it: without
its marks the channel's name would be part of the answer.
Ids stay the truth: this text is never tokenized again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from verifiers import ANSWER_TAGS, THINKING_TAGS, opened_thinking

KEPT_TAGS = frozenset(tag for pair in (*THINKING_TAGS, ANSWER_TAGS) for tag in pair)
TAIL_TOKENS = 48  # of a prompt: the tag and what a template writes after it
THINK, END_OF_THINK = THINKING_TAGS[0]
HARMONY_MARKS = frozenset(
    {"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|eom|>"}
)
HARMONY_MESSAGE = re.compile(
    r"(?:<\|start\|>\w*)?\s*(?:to=(?P<recipient>[\w.]+))?\s*(?:<\|channel\|>\s*(?P<channel>\w*))?"
    r"[^<]*(?:<\|constrain\|>[^<]*)?"
    r"<\|message\|>(?P<body>.*?)(?P<end><\|end\|>|<\|call\|>|<\|eom\|>|(?=<\|start\|>|<\|channel\|>)|\Z)"
    r"|(?P<cut_off>(?:<\|start\|>\w*)?<\|channel\|>.*\Z)",
    re.DOTALL,
)
GEMMA_MARKS = frozenset({"<|channel>", "<channel|>"})


def completion_texts(
    tokenizer: Any, completions: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]
) -> list[str]:
    """One text per completion. prompts: the rendered prompt ids of each, whose open thinking tag comes first."""
    marks = _marks(tokenizer) if hasattr(tokenizer, "added_tokens_decoder") else frozenset()
    dropped = _dropped_ids(tokenizer) if hasattr(tokenizer, "added_tokens_decoder") else None
    if dropped is None:
        texts = tokenizer.batch_decode([list(ids) for ids in completions], skip_special_tokens=True)
    else:
        kept = [[i for i in ids if i not in dropped] for ids in completions]
        texts = tokenizer.batch_decode(kept, skip_special_tokens=False)
    tails = [tuple(ids[-TAIL_TOKENS:]) for ids in prompts]
    distinct = list(dict.fromkeys(tails))
    decoded = tokenizer.batch_decode([list(tail) for tail in distinct], skip_special_tokens=False)
    if marks >= GEMMA_MARKS:
        texts, decoded = [_gemma_in_tags(t) for t in texts], [_gemma_in_tags(t) for t in decoded]
    elif marks:
        texts = [_harmony_in_tags(t) for t in texts]
    opened = {tail: opened_thinking(text) for tail, text in zip(distinct, decoded, strict=True)}
    return [opened[tail] + text for tail, text in zip(tails, texts, strict=True)]


def opened_by(tokenizer: Any, prompt_ids: Sequence[int]) -> str:
    """The thinking tag that a rendered prompt leaves open, or the empty string."""
    return opened_thinking(tokenizer.decode(list(prompt_ids[-TAIL_TOKENS:]), skip_special_tokens=False))


def completion_text(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int]) -> str:
    """The text of one completion; see completion_texts."""
    return completion_texts(tokenizer, [ids], [prompt])[0]


def _harmony_in_tags(text: str) -> str:
    """What a model wrote in messages, marks included: its answer as it is, every other message in thinking tags.

    An answer is in gpt-oss's final channel, or Muse Glimmer's message to the user. A message that was cut off has no
    closing tag, so its text is not taken for an answer.
    """

    def tagged(message: re.Match[str]) -> str:
        if message["cut_off"]:
            return THINK
        channel, recipient = message["channel"], message["recipient"]
        if channel == "final" or (channel is None and recipient in (None, "user")):
            return message["body"]
        ended = message["end"] or message.end() < len(text)
        return THINK + message["body"] + (END_OF_THINK if ended else "")

    return re.sub("|".join(map(re.escape, HARMONY_MARKS)), "", HARMONY_MESSAGE.sub(tagged, text))


def _gemma_in_tags(text: str) -> str:
    return re.sub(r"<\|channel>(?:thought\n?)?", THINK, text).replace("<channel|>", END_OF_THINK)


@lru_cache(maxsize=8)
def _marks(tokenizer: Any) -> frozenset[str]:
    """Tokens that name or bound a channel; none for a tokenizer of another kind of model."""
    tokens = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    for marks, needed in ((HARMONY_MARKS, {"<|start|>", "<|message|>"}), (GEMMA_MARKS, GEMMA_MARKS)):
        if needed <= tokens:
            return marks
    return frozenset()


@lru_cache(maxsize=8)
def _dropped_ids(tokenizer: Any) -> frozenset[int] | None:
    """The special tokens to leave out of the text; None if no thinking tag and no mark of a channel is among them."""
    special = {int(i): str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    kept = KEPT_TAGS | _marks(tokenizer)
    if not kept & set(special.values()):
        return None
    return frozenset(i for i, content in special.items() if content not in kept)
