"""Alpaca: `instruction`, `input`, `output`; LLaMA-Factory adds `system`, `history`, `chosen` and `rejected`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.conversations import IMITATE
from pipeline.data.formats.spec import Format, Row


def convert(row: Mapping[str, Any]) -> Row:
    """A conversation where there is a system text or a history, else text and text."""
    question = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    out: Row = {"prompt": question}
    if row.get("system") or row.get("history"):
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        turns = [turn for pair in row.get("history") or [] for turn in exchange(pair)]
        out["prompt"] = [*system, *turns, {"role": "user", "content": question}]
    if "chosen" in row:
        return {**out, "chosen": row["chosen"], "rejected": row["rejected"]}
    if "output" in row:
        out["completion"] = row["output"]
    return {**out, IMITATE: bool(row["kto_tag"])} if "kto_tag" in row else out


def exchange(pair: Any) -> list[Row]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError("its history must be a list of [question, answer]")
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


def matches(row: Mapping[str, Any]) -> bool:
    answered = "output" in row or {"chosen", "rejected"} <= row.keys()
    return isinstance(row.get("instruction"), str) and answered and not {"prompt", "messages"} & row.keys()


FORMAT = Format(convert, ("instruction",), "Alpaca, LLaMA-Factory", matches=matches)
