"""ShareGPT: `conversations` of `from` and `value`, as LLaMA-Factory, Axolotl and FastChat write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.conversations import IMITATE
from pipeline.data.formats.spec import Format, Row

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "assistant": "assistant", "model": "assistant", "system": "system", "observation": "tool",
    "tool": "tool", "ipython": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip


def convert(row: Mapping[str, Any]) -> Row:
    """`system` goes in front; `tools` may be JSON text; pairs have `chosen` and `rejected` turns after the rest."""
    messages = [message(turn) for turn in row["conversations"]]
    if not messages:
        raise ValueError("its conversations are empty")
    if row.get("system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    out: Row = {"messages": messages}
    if "chosen" in row:
        out = {"prompt": messages, **{side: [message(row[side])] for side in ("chosen", "rejected")}}
    if "kto_tag" in row:
        out[IMITATE] = bool(row["kto_tag"])
    return out


def message(turn: Mapping[str, Any]) -> Row:
    """One turn in our names. A function call's value is the call as JSON text."""
    said_by = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    role = ROLES.get(str(said_by))
    if role is None:
        raise ValueError(f"a turn is from {said_by!r}; have: {', '.join(ROLES)}")
    flags = {name: turn[name] for name in ("train", "weight", "tool_calls") if name in turn}
    if said_by != "function_call":
        return {"role": role, "content": content, **flags}
    calls = json.loads(content)
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": role, "content": "", "tool_calls": [{"type": "function", "function": c} for c in calls], **flags}


def matches(row: Mapping[str, Any]) -> bool:
    turns = row.get("conversations")
    return isinstance(turns, list) and bool(turns) and all(isinstance(t, Mapping) for t in turns)


FORMAT = Format(convert, ("conversations",), "ShareGPT", matches=matches)
