"""slime: `prompt` as text or messages, `label` the gold, `metadata`, `tools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row, is_prompt, one_gold


def convert(row: Mapping[str, Any]) -> Row:
    return {"gold": one_gold(row["label"], "label")}


def matches(row: Mapping[str, Any]) -> bool:
    """KTO's label is true or false, and stands beside a completion."""
    unjudged = not {"completion", "chosen", "messages", "gold", "task"} & row.keys()
    return unjudged and is_prompt(row.get("prompt")) and "label" in row and not isinstance(row["label"], bool)


FORMAT = Format(convert, ("prompt", "label"), "slime", matches=matches)
