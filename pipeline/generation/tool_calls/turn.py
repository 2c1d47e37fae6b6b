"""What a parser makes of an assistant's turn, and what several parsers share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers import THINKING_TAGS

Schemas = Sequence[Mapping[str, Any]]  # as transformers.utils.get_json_schema makes them
MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """content: the text besides the calls. malformed: what is wrong with each call that could not be read.
    thinking: only of formats that keep it in a channel of its own."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    malformed: tuple[str, ...] = ()
    thinking: str = ""


class MalformedCall(ValueError):
    """What is wrong with a call, in words for the model."""


def call_of(value: Any, *names: str) -> ToolCall:
    """A call from its JSON object. names: keys that may hold the arguments. Raises MalformedCall."""
    if not isinstance(value, dict):
        raise MalformedCall(f"a tool call must be a JSON object, found {shown(value)}")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise MalformedCall("a tool call must have a `name`")
    arguments: Any = next((value[key] for key in names if key in value), {})
    if isinstance(arguments, str):  # encoded a second time, as some models do
        arguments = loads(arguments)
    if not isinstance(arguments, dict):
        raise MalformedCall(f"the arguments of {name!r} must be a JSON object, found {shown(arguments)}")
    return ToolCall(name, arguments)


def loads(text: str) -> Any:
    """Raises MalformedCall."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise MalformedCall(f"not JSON ({_reason(exc)}): {shown(text)}") from None


def read_json(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, after white space, and the index after it. Raises MalformedCall."""
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as exc:
        raise MalformedCall(f"not JSON ({_reason(exc)}): {shown(text[start:])}") from None


def _reason(exc: Exception) -> str:
    return str(exc.msg) if isinstance(exc, json.JSONDecodeError) else type(exc).__name__


def skip_space(text: str, start: int) -> int:
    return start + len(text[start:]) - len(text[start:].lstrip())


def typed(text: str, schemas: Schemas, tool: str, argument: str) -> Any:
    """An argument written as plain text, as the type that the tool's schema names; the text itself if it is not one."""
    if "string" in _types(schemas, tool, argument):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)


def _types(schemas: Schemas, tool: str, argument: str) -> Sequence[str]:
    for schema in schemas:
        function = schema.get("function", schema)
        if function.get("name") == tool:
            properties = function.get("parameters", {}).get("properties", {})
            kind = properties.get(argument, {}).get("type", "string")
            return [kind] if isinstance(kind, str) else kind
    return ["string"]


def without_thinking(text: str) -> tuple[str, str]:
    """(the thinking with its tags, what follows it). Thinking that was never closed is all of the text."""
    end = 0
    for opening, closing in THINKING_TAGS:
        last = text.rfind(closing)
        end = max(end, last + len(closing) if last >= 0 else 0)
        if opening in text[end:]:
            return text, ""
    return text[:end], text[end:]


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
