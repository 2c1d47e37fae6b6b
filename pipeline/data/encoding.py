"""Rows -> token ids: what sampling is given, what an answer to it is, what is imitated."""

from __future__ import annotations

from array import array
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import chat_template, columns, conversations
from pipeline.data.columns import DataRow, Row
from pipeline.data.conversations import IMITATE, Conversation, Demonstration, Renderer
from pipeline.data.lazy_rows import Rebuilt
from pipeline.data.prompt_columns import completion_value, has_completion, in_chat, prompt_value, refused, row_origin


def render_ids(
    row: Mapping[str, Any], source: Prompts, tokenizer: Any, *, label: str = "", number: int = 0
) -> list[int]:
    """Prompt token ids: plain text as it is, messages through the chat template. One BOS, no EOS.

    label: plain text put in front of what the user says (condition tokens).
    Raises ConfigError naming a row that the template refuses or that gives no token.
    """
    value = prompt_value(row, source, number, "prompts")
    if not in_chat(row, source, number):
        if "segments" in row and not label and has_completion(row, source):
            return list(conversations.segment_row(row["segments"], tokenizer).prompt_ids)
        ids = list(tokenizer(label + str(value)).input_ids)
        ids = ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
        if not ids:
            reason = ValueError(f"the tokenizer has no token for any part of the prompt {str(value)[:40]!r}")
            raise refused("prompts", row, number, source, reason)
        return ids
    try:
        chat = _labelled(conversations.conversation(row, source, value, None), label)
        return Renderer(tokenizer, source).prompt(chat.messages, chat.tools)
    except ValueError as exc:
        raise refused("prompts", row, number, source, exc) from exc


def chat_of(row: Mapping[str, Any], source: Prompts, *, label: str = "") -> Conversation:
    """The messages and tools of a row's prompt, label as in `render_ids`.

    Raises ConfigError naming the row, also where it holds plain text.
    """
    value = prompt_value(row, source, 0, "prompts")
    if not in_chat(row, source):
        reason = ValueError("its prompt is plain text, and tools need the chat template; set prompts.chat: true")
        raise refused("prompts", row, 0, source, reason)
    try:
        return _labelled(conversations.conversation(row, source, value, None), label)
    except ValueError as exc:
        raise refused("prompts", row, 0, source, exc) from exc


def _labelled(chat: Conversation, label: str) -> Conversation:
    """The conversation with the label in front of its first user message, in place."""
    first = next((turn for turn in chat.messages if turn["role"] == "user"), None) if label else None
    if first is not None:
        first["content"] = label + first["content"]
    return chat


def completion_ids(
    row: Mapping[str, Any],
    source: Prompts,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    *,
    stop_token_ids: frozenset[int],
    number: int = 0,
) -> list[int]:
    """Completion token ids after the prompt's, which end with an end token: the template's of a turn, else EOS.

    A completion of several messages holds all of them, tool results too; to imitate one, see `Demonstrations`.
    Raises ConfigError naming the row.
    """
    value = completion_value(row, source, number=number, where="prompts")
    if not in_chat(row, source, number):
        text = value if isinstance(value, str) else "".join(turn["content"] for turn in value)
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        return ids if ids and ids[-1] in stop_token_ids else [*ids, tokenizer.eos_token_id]
    try:
        chat = conversations.conversation(row, source, prompt_value(row, source, number, "prompts"), value)
        renderer = Renderer(tokenizer, source, stop_token_ids)
        if isinstance(value, str) or len(value) == 1:
            return renderer.answer(chat.messages, chat.tools, prompt_ids)
        full = chat_template.render(tokenizer, chat.messages, kwargs=source.chat_kwargs, tools=chat.tools)
        if full[: len(prompt_ids)] != list(prompt_ids):
            raise ValueError("the chat template changes the prompt once it is answered; give prompt and completion "
                             "as text, or a template that only appends")  # fmt: skip
        return renderer.ended(full[len(prompt_ids) :])
    except ValueError as exc:
        raise refused("prompts", row, number, source, exc) from exc


def pair_of(
    row: Mapping[str, Any], source: Prompts, tokenizer: Any, *, stop_token_ids: frozenset[int], number: int, where: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Prompt, chosen and rejected ids of a preference row. Raises ConfigError naming the row that lacks a side."""
    prompt = render_ids(row, source, tokenizer, number=number)
    sides = []
    for column in ("chosen", "rejected"):
        if column not in row:
            raise refused(where, row, number, source, ValueError(f"it has no column {column!r}"))
        one = DataRow({**row, source.completion: row[column]}, row_origin(row, number, source))
        sides.append(
            tuple(completion_ids(one, source, tokenizer, prompt, stop_token_ids=stop_token_ids, number=number))
        )
    return tuple(prompt), sides[0], sides[1]


class Demonstrations(Rebuilt[Demonstration]):
    """What is imitated of rows, in their order; a row gives none, one or several. lengths: (N,) tokens of each.

    report: a line that counts what is not imitated; None where everything is. barred: texts of held-out prompts, which
    no earlier turn of a conversation may answer either.
    Raises ConfigError naming the row that has no completion, or that the chat template refuses.
    """

    def __init__(
        self, rows: Sequence[Row], source: Prompts, tokenizer: Any, *, stop_token_ids: frozenset[int],
        where: str = "prompts", barred: Container[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self._rows, self._source, self._barred, self._where = rows, source, barred, where
        self._renderer = renderer = Renderer(tokenizer, source, stop_token_ids)
        left_out = renderer.left_out
        self._numbers, self._parts, lengths = array("q"), array("i"), array("i")
        for number, row in enumerate(rows, 1):
            if row.get(IMITATE) is False:
                left_out["rows labelled as bad"] += 1
                continue
            built = _of_row(row, number, source, renderer, barred, where)
            left_out["rows without an assistant turn to imitate"] += not built
            for part, one in enumerate(built):
                tokens = len(one.prompt_ids) + len(one.completion_ids)
                if self.room > 0:
                    self.keep(one, 48 * tokens)
                self._numbers.append(number)
                self._parts.append(part)
                lengths.append(tokens)
        self.lengths = np.array(lengths, np.int32)
        self.report = conversations.summary(where, len(rows), len(lengths), +left_out)
        if rows and not lengths:
            raise ConfigError([self.report or f"{where}: no row to imitate"])

    def __len__(self) -> int:
        return len(self.lengths)

    def build(self, index: int) -> Demonstration:
        number = self._numbers[index]
        row = self._rows[number - 1]
        return _of_row(row, number, self._source, self._renderer, self._barred, self._where)[self._parts[index]]


def _of_row(
    row: Mapping[str, Any], number: int, source: Prompts, renderer: Renderer, barred: Container[str],
    where: str,
) -> list[Demonstration]:  # fmt: skip
    if "segments" in row:
        return [conversations.segment_row(row["segments"], renderer.tokenizer)]
    if not in_chat(row, source, number):
        prompt = render_ids(row, source, renderer.tokenizer, number=number)
        ids = completion_ids(
            row, source, renderer.tokenizer, prompt, stop_token_ids=renderer.stop_token_ids, number=number
        )
        if row.get("tools"):
            renderer.left_out["tools of prompts that are plain text (prompts.chat: true renders them)"] += 1
        return [Demonstration(tuple(prompt), tuple(ids), (True,) * len(ids), "text")]
    value = prompt_value(row, source, number, where)
    unanswered = source.completion not in row and "messages" in row and not _answered(row)
    after = None if unanswered else completion_value(row, source, number=number, where=where)
    renderer.left_out["last questions without an answer"] += unanswered
    try:
        chat = conversations.conversation(row, source, value, after)
        renderer.left_out["assistant turns flagged not to train"] += _flagged(chat, row, source)
        return conversations.imitated_rows(chat, renderer, train_on=source.train_on, barred=barred)
    except ValueError as exc:
        raise refused(where, row, number, source, exc) from exc


def _answered(row: Mapping[str, Any]) -> bool:
    turns = columns.text_or_messages(row["messages"], "messages", text=False)
    return isinstance(turns[-1], Mapping) and turns[-1]["role"] == "assistant"


def _flagged(chat: Conversation, row: Mapping[str, Any], source: Prompts) -> int:
    if "messages" not in row or source.prompt in row:
        return 0
    return sum(turn["role"] == "assistant" for turn in chat.messages) - len(chat.turns)
