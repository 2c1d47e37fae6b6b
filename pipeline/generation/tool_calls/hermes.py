"""Hermes, Qwen 2.5 and Qwen 3: <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>, any number of them."""

from __future__ import annotations

from pipeline.generation.tool_calls.turn import (
    MalformedCall,
    ParsedTurn,
    Schemas,
    ToolCall,
    call_of,
    read_json,
    skip_space,
)

MARKS = (("<tool_call>", '"arguments": '), ("<tool_call>", '"name": <function-name>'))
OPENING, CLOSING = "<tool_call>", "</tool_call>"


def parse(text: str, schemas: Schemas) -> ParsedTurn:
    plain_parts, calls, malformed = list[str](), list[ToolCall](), list[str]()
    at = 0
    while (start := text.find(OPENING, at)) >= 0:
        plain_parts.append(text[at:start])
        try:
            value, end = read_json(text, start + len(OPENING))
            end = skip_space(text, end)
            if not text.startswith(CLOSING, end):
                raise MalformedCall(f"the call does not end with {CLOSING}")
            calls.append(call_of(value, "arguments", "parameters"))
            at = end + len(CLOSING)
        except MalformedCall as exc:
            malformed.append(str(exc))
            closing = text.find(CLOSING, start)
            at = closing + len(CLOSING) if closing >= 0 else len(text)
    plain_parts.append(text[at:])
    return ParsedTurn("".join(plain_parts).strip(), tuple(calls), tuple(malformed))
