"""UltraFeedback, binarized: two conversations of which only the last turn differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row


def convert(row: Mapping[str, Any]) -> Row:
    """`prompt` is the first question as text; the turns before the last are the prompt."""
    chosen, rejected = list(row["chosen"]), list(row["rejected"])
    if not chosen or chosen[-1]["role"] != "assistant" or not rejected or rejected[-1]["role"] != "assistant":
        raise ValueError("chosen and rejected do not end with the assistant's turn")
    head = chosen[:-1] or [{"role": "user", "content": row["prompt"]}]
    return {"prompt": head, "completion": chosen[-1:], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def matches(row: Mapping[str, Any]) -> bool:
    """TRL's explicit preferences have a prompt of messages, and no turn of the user in the answers."""
    chosen = row.get("chosen")
    if not (isinstance(chosen, list) and len(chosen) > 1 and isinstance(chosen[0], Mapping)):
        return False
    return isinstance(row.get("prompt"), str) and chosen[0].get("content") == row["prompt"]


FORMAT = Format(
    convert, ("prompt", "chosen", "rejected"), "HuggingFaceH4/ultrafeedback_binarized", "MIT", matches=matches
)
