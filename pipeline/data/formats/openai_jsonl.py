"""OpenAI's fine-tuning files: preferences, and reinforcement rows. Its chat rows are `messages` as we read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row, is_messages, one_gold

GOLDS = ("reference_answer", "answer", "correct_answer", "ground_truth")  # what graders call `item.…`, most often


def preference(row: Mapping[str, Any]) -> Row:
    given = row["input"]
    out: Row = {"prompt": given["messages"], "chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return {**out, "tools": given["tools"]} if given.get("tools") else out


def preference_matches(row: Mapping[str, Any]) -> bool:
    given = row.get("input")
    return isinstance(given, Mapping) and is_messages(given.get("messages")) and "preferred_output" in row


def reinforcement(row: Mapping[str, Any]) -> Row:
    """All messages are the prompt. The gold is the answer that graders compare with, under its usual names."""
    if not is_messages(row["messages"]) or row["messages"][-1]["role"] == "assistant":
        raise ValueError("its messages must end with the user's turn: what follows is sampled")
    name = next((name for name in GOLDS if name in row), None)
    return {"prompt": row["messages"], **({} if name is None else {"gold": one_gold(row[name], name)})}


def reinforcement_matches(row: Mapping[str, Any]) -> bool:
    messages: Any = row.get("messages")
    prompt_only = is_messages(messages) and messages[-1]["role"] in ("user", "tool")
    return prompt_only and "prompt" not in row and any(name in row for name in GOLDS) and "dataset" not in row


PREFERENCE = Format(
    preference, ("input", "preferred_output", "non_preferred_output"), "OpenAI fine-tuning", matches=preference_matches
)
REINFORCEMENT = Format(reinforcement, ("messages",), "OpenAI fine-tuning", matches=reinforcement_matches)
