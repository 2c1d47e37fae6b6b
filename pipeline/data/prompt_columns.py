"""The prompt, completion and task of a row, by the columns that the config names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import chat_template, columns
from pipeline.data.columns import MISSING, Message
from pipeline.data.conversations import IMITATE
from verifiers.tools._prime import COLUMN as PRIME_TASK

MARK = re.compile(r"\{([^{}]+)\}")  # of a column, in a template


def prompt_text(row: Mapping[str, Any], source: Prompts, *, number: int = 0, where: str = "prompts") -> str:
    """The row's prompt as people read it, and the key of the held-out split. Raises ConfigError naming the row."""
    value = prompt_value(row, source, number, where)
    if isinstance(value, str):
        return value
    try:
        return chat_template.text_of(value)
    except ValueError as exc:
        raise refused(f"{where}.prompt", row, number, source, exc) from exc


def prompt_value(row: Mapping[str, Any], source: Prompts, number: int, where: str) -> str | list[Message]:
    """The prompt as text, or as messages. Raises ConfigError naming file, row, column and fix."""
    if source.template is not None:  # only its own marks are filled: a value may hold {answer} as its words

        def filled(mark: re.Match[str]) -> str:
            value = columns.column(row, mark[1])
            return mark[0] if value is MISSING else str(value)

        if text := MARK.sub(filled, source.template):
            return text
        reason = ValueError("the template gives an empty prompt; fill in its columns, or remove the row")
        raise refused(f"{where}.template", row, number, source, reason)
    value = columns.column(row, source.prompt)
    try:
        if value is not MISSING:
            return columns.text_or_messages(value, source.prompt)
        if "segments" in row:
            return segments_prompt(row["segments"])
        if "messages" in row:  # TRL's conversational language-modelling format: the last turn is the completion
            turns = columns.text_or_messages(row["messages"], "messages", text=False)
            assert not isinstance(turns, str)
            if turns[-1]["role"] != "assistant":
                return turns
            if len(turns) == 1:
                raise ValueError("column 'messages' holds one assistant turn and no prompt before it")
            return turns[:-1]
    except ValueError as exc:
        raise refused(f"{where}.prompt", row, number, source, exc) from exc
    raise ConfigError([f"{where}.prompt: {row_origin(row, number, source)} has no column {source.prompt!r}"
                       f"{columns.nearest_column(source.prompt, row)}"])  # fmt: skip


def segments_prompt(segments: Sequence[Mapping[str, Any]]) -> str:
    """The text before the first segment that is learned from; all of it where that is the first."""
    texts = []
    for segment in segments:
        if segment["label"]:
            break
        texts.append(segment["text"])
    return "".join(texts) or "".join(segment["text"] for segment in segments)


def completion_value(row: Mapping[str, Any], source: Prompts, *, number: int, where: str) -> str | list[Message]:
    """The row's completion, text or messages. Raises ConfigError naming the row."""
    value = columns.column(row, source.completion)
    try:
        if value is not MISSING:
            return columns.text_or_messages(value, source.completion)
        if "segments" in row and any(segment["label"] for segment in row["segments"]):
            return "".join(segment["text"] for segment in row["segments"] if segment["label"])
        if "messages" in row:
            turns = columns.text_or_messages(row["messages"], "messages", text=False)
            assert not isinstance(turns, str)
            if turns[-1]["role"] == "assistant":
                return turns[-1:]
            raise ValueError(f"its messages end with the {turns[-1]['role']}'s turn, so there is no answer to imitate")
    except ValueError as exc:
        raise refused(f"{where}.completion", row, number, source, exc) from exc
    raise ConfigError([f"{where}.completion: {row_origin(row, number, source)} has no column {source.completion!r}"
                       f"{columns.nearest_column(source.completion, row)}"])  # fmt: skip


def has_completion(row: Mapping[str, Any], source: Prompts) -> bool:
    """Whether the row holds an answer to imitate: rows of verifiable tasks often hold none."""
    if row.get(IMITATE) is False:
        return False
    if columns.column(row, source.completion) is not MISSING:
        return True
    messages = columns.parsed_messages(m) if isinstance(m := row.get("messages"), str) else m
    if isinstance(messages, Sequence) and messages:
        return any(isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in messages)
    return any(segment["label"] for segment in row.get("segments") or ())


def task_of(row: Mapping[str, Any], source: Prompts, *, number: int = 0) -> dict[str, Any]:
    """The verifier's fields. Raises ConfigError where a mapped column is missing."""
    if source.task is not None:
        task = {}
        for task_field, name in source.task.items():
            task[task_field] = columns.column(row, name)
            if task[task_field] is MISSING:
                at = row_origin(row, number, source)
                hint = columns.nearest_column(name, row)
                raise ConfigError([f"prompts.task.{task_field}: {at} has no column {name!r}{hint}"])
        return task | {column: row[column] for column in (PRIME_TASK,) if column in row}
    if isinstance(row.get("task"), Mapping):
        return dict(row["task"])
    return {k: v for k, v in row.items() if k not in ("messages", "segments", "tools", source.completion)}


def row_origin(row: Mapping[str, Any], number: int, source: Prompts) -> str:
    return columns.origin(row, number, source.label)


def refused(where: str, row: Mapping[str, Any], number: int, source: Prompts, reason: Exception) -> ConfigError:
    return ConfigError([f"{where}: {row_origin(row, number, source)}: {reason}"])


def in_chat(row: Mapping[str, Any], source: Prompts, number: int = 0) -> bool:
    """Does this row go through the chat template: it holds messages, or the config puts its text into a turn."""
    return source.chat or source.system is not None or not isinstance(prompt_value(row, source, number, "prompts"), str)
