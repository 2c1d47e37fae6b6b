"""OpenRLHF: `input` or `context_messages` with a `label`, `input` as a whole conversation, `input` and `output`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import (
    Format,
    Row,
    ends_with_assistant,
    is_messages,
    is_prompt,
    named_verifier,
    one_gold,
)


def convert(row: Mapping[str, Any]) -> Row:
    prompt = row["context_messages"] if "context_messages" in row else row.get("input")
    if prompt is None:
        raise ValueError("it has neither input nor context_messages")
    if ends_with_assistant(prompt) and "output" not in row:
        return {"messages": prompt}
    out: Row = {"prompt": prompt}
    if "output" in row:
        out["completion"] = row["output"]
    if "label" in row:
        out |= {"gold": one_gold(row["label"], "label"), **named_verifier(row.get("datasource"))}
    return out


def matches(row: Mapping[str, Any]) -> bool:
    """`input` and `output` as texts are NeMo-RL's as well, which knows that the output is a gold too."""
    if {"prompt", "messages", "instruction", "chosen"} & row.keys():
        return False
    prompt = row.get("context_messages") or row.get("input")
    if not is_prompt(prompt):
        return False
    return "label" in row or is_messages(row.get("context_messages")) or is_messages(row.get("input"))


FORMAT = Format(convert, (), "OpenRLHF", matches=matches)
