"""Tool calls in the text of an assistant's turn, in the format that the model's chat template writes.

One module per format: `MARKS`, strings of which a chat template that writes this format holds all of one group, and
`parse(text, schemas) -> ParsedTurn`. The text is a finished turn with its special tokens and without its end token.

Decided once for all formats, because parsers of serving engines differ in it:
  - a call inside a thinking block is not a call;
  - a call that is not closed, or that something is wrong with, is malformed: it is reported to the model, and the other
    calls of the turn stand;
  - a turn with neither is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.mistakes import ConfigError
from pipeline.generation.tool_calls import (
    gemma_calls,
    harmony,
    hermes,
    llama_json,
    mistral_calls,
    pythonic,
    qwen_xml,
)
from pipeline.generation.tool_calls.turn import ParsedTurn, Schemas, ToolCall, without_thinking

# in the order in which a template is recognised: the marks of the earlier ones are more specific
FORMATS: Mapping[str, Any] = {
    "harmony": harmony,
    "gemma": gemma_calls,
    "qwen_xml": qwen_xml,
    "mistral": mistral_calls,
    "pythonic": pythonic,
    "llama_json": llama_json,
    "hermes": hermes,
}


def recognised_format(template: str) -> str | None:
    """The format that a chat template writes tool calls in; None if it is none of FORMATS."""
    for name, module in FORMATS.items():
        if any(all(mark in template for mark in group) for group in module.MARKS):
            return name
    return None


def format_of(template: str | None, chosen: str | None, *, where: str = "tools.format") -> str:
    """The chosen format, else the template's. Raises ConfigError if there is neither."""
    if chosen is not None:
        return chosen
    call_format = recognised_format(template or "")
    if call_format is None:
        raise ConfigError([f"{where}: the chat template writes no tool calls in a known format; name the format that "
                           f"the model writes: {', '.join(FORMATS)}"])  # fmt: skip
    return call_format


def parse_turn(text: str, format_name: str, schemas: Schemas) -> ParsedTurn:
    """The calls and the remaining content of a finished assistant turn."""
    module = FORMATS[format_name]
    if format_name == "harmony":  # its thinking is a channel
        return module.parse(text, schemas)
    thinking, rest = without_thinking(text)
    turn: ParsedTurn = module.parse(rest, schemas)
    return ParsedTurn(thinking + turn.content, turn.calls, turn.malformed, turn.thinking)


__all__ = ["FORMATS", "ParsedTurn", "Schemas", "ToolCall", "format_of", "parse_turn", "recognised_format"]
