"""TL;DR: Reddit posts and their summaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row


def convert(row: Mapping[str, Any]) -> Row:
    """`prompt` ends in TL;DR:; pairs have `chosen` and `rejected`."""
    out: Row = {"prompt": row["prompt"]}
    for column in ("completion", "chosen", "rejected"):
        if column in row:
            text = row[column]
            out[column] = text if text[:1].isspace() else " " + text  # the token after `TL;DR:` begins with a space
    if len(out) == 1:
        raise ValueError("it has neither completion nor chosen and rejected")
    return out


FORMAT = Format(convert, ("prompt",), "trl-lib/tldr, trl-lib/tldr-preference", "modified MIT; Reddit posts")
