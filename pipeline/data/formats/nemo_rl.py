"""NeMo-RL: `input` and `output`, and preferences as ranked completions of a context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row, is_messages, one_gold


def response(row: Mapping[str, Any]) -> Row:
    """The output is the demonstration and the gold: which of them is read depends on the stage."""
    return {"prompt": row["input"], "completion": row["output"], "gold": one_gold(row["output"], "output")}


def response_matches(row: Mapping[str, Any]) -> bool:
    texts = isinstance(row.get("input"), str) and isinstance(row.get("output"), str)
    return texts and not {"prompt", "messages", "instruction", "chosen", "label"} & row.keys()


def preference(row: Mapping[str, Any]) -> Row:
    """The best rank against the next; a lower rank is better."""
    ranked = sorted(row["completions"], key=lambda one: one["rank"])
    if len(ranked) < 2 or ranked[0]["rank"] == ranked[1]["rank"]:
        raise ValueError("its completions have no two different ranks")
    if len(ranked) > 2:
        raise ValueError(f"it has {len(ranked)} completions, and a pair has two; write a row per pair")
    return {"prompt": row["context"], "chosen": ranked[0]["completion"], "rejected": ranked[1]["completion"]}


def preference_matches(row: Mapping[str, Any]) -> bool:
    ranked = row.get("completions")
    some = isinstance(ranked, list) and bool(ranked) and all(isinstance(c, Mapping) and "rank" in c for c in ranked)
    return some and is_messages(row.get("context"))


RESPONSE = Format(response, ("input", "output"), "NeMo-RL", matches=response_matches)
PREFERENCE = Format(preference, ("context", "completions"), "NeMo-RL", matches=preference_matches)
