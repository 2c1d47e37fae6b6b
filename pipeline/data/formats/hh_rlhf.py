"""Anthropic's helpful and harmless preferences: two transcripts that part in the last answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row

TURN = re.compile(r"\n\n(Human|Assistant): ")
ROLES = {"Human": "user", "Assistant": "assistant"}


def convert(row: Mapping[str, Any]) -> Row:
    """What the two transcripts share is the prompt."""
    chosen, rejected = transcript(row["chosen"]), transcript(row["rejected"])
    shared = 0
    for a, b in zip(chosen[:-1], rejected[:-1], strict=False):
        if a != b:
            break
        shared += 1
    if shared != len(chosen) - 1 or shared != len(rejected) - 1 or chosen[-1]["role"] != "assistant" or not shared:
        raise ValueError("its two transcripts do not part in their last answer")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def transcript(text: str) -> list[dict[str, str]]:
    """`\\n\\nHuman: ... \\n\\nAssistant: ...` -> messages. Raises ValueError where the text is no transcript."""
    pieces = TURN.split("\n\n" + text.lstrip("\n"))
    if pieces[0].strip() or len(pieces) < 3:
        raise ValueError("it is no transcript of Human and Assistant")
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": ROLES[role], "content": content.strip()} for role, content in pairs]


def matches(row: Mapping[str, Any]) -> bool:
    sides = [row.get("chosen"), row.get("rejected")]
    return "prompt" not in row and all(isinstance(s, str) and s.lstrip("\n").startswith("Human: ") for s in sides)


FORMAT = Format(convert, ("chosen", "rejected"), "Anthropic/hh-rlhf", "MIT", matches=matches)
