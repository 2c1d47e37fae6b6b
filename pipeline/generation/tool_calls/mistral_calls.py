"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]; from tokenizer v11 on [TOOL_CALLS]NAME[ARGS]{...}."""

from __future__ import annotations

import re

from pipeline.generation.tool_calls.turn import MalformedCall, ParsedTurn, Schemas, ToolCall, call_of, read_json, shown

MARKS = (("[TOOL_CALLS]",),)
OPENING, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\][\w-]+)?\s*(?:\[ARGS\])?\s*(?=\{)")


def parse(text: str, schemas: Schemas) -> ParsedTurn:
    content, *blocks = text.split(OPENING)
    calls, malformed = list[ToolCall](), list[str]()
    for block in blocks:
        try:
            calls += _calls(block)
        except MalformedCall as exc:
            malformed.append(str(exc))
    return ParsedTurn(content.strip(), tuple(calls), tuple(malformed))


def _calls(block: str) -> list[ToolCall]:
    if named := _NAMED.match(block):
        arguments, end = read_json(block, named.end())
        values = [{"name": named[1], "arguments": arguments}]
    else:
        values, end = read_json(block, 0)
        if not isinstance(values, list) or not values:
            raise MalformedCall(f"{OPENING} must be followed by a list of calls, found {shown(values)}")
    if block[end:].strip():
        raise MalformedCall(f"nothing may follow the calls, found {shown(block[end:].strip())}")
    return [call_of(value, "arguments", "parameters") for value in values]
