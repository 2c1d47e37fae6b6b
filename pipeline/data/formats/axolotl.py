"""Axolotl's template-free rows: `segments` of text, each with a label that says whether it is learned from.

Its chat rows (`messages` with `train: false`) are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row


def convert(row: Mapping[str, Any]) -> Row:
    segments = [{"text": segment["text"], "label": segment["label"]} for segment in row["segments"]]
    if not all(isinstance(s["text"], str) and isinstance(s["label"], bool) for s in segments):
        raise ValueError("each of its segments must have text and a label of true or false")
    if not any(s["label"] and s["text"] for s in segments):
        raise ValueError("none of its segments is labelled true, so nothing is learned from it")
    return {"segments": segments}


def matches(row: Mapping[str, Any]) -> bool:
    segments: Any = row.get("segments")
    some = isinstance(segments, list) and bool(segments)
    return some and all(isinstance(s, Mapping) and {"label", "text"} <= s.keys() for s in segments)


FORMAT = Format(convert, ("segments",), "Axolotl input_output", matches=matches)
