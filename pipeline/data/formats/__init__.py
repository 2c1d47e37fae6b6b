"""Rows of other tools and of well-known data sets -> our columns. One pure function per format, one small file each.

Out comes a row with `prompt` (text or messages), or `messages`, and what the format holds of `completion`, `chosen`,
`rejected`, `tools`, `gold` or `task`, the verifier's fields. The other columns stay, so that a template may use them.
A format is named under `prompts.format`; where none is named, the rows' columns are looked at (`recognised`).
What a format names as its licence is what its publishers state; check it before you ship a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.formats import (
    alpaca,
    axolotl,
    countdown_tasks,
    gsm8k,
    hendrycks_math,
    hh_rlhf,
    mbpp,
    nemo_rl,
    open_instruct,
    openai_jsonl,
    openrlhf,
    prime,
    sharegpt,
    skyrl,
    slime,
    tldr,
    trl_types,
    ultrafeedback,
    verl,
)
from pipeline.data.formats.spec import Format, Row, UnsupportedRow

PLAIN = "plain"  # the columns as they are
TRIED = 20  # rows that must all look alike for a format to be recognised

# in the order in which they are tried: what names more columns comes first
FORMATS: dict[str, Format] = {
    "verl": verl.FORMAT,
    "skyrl": skyrl.FORMAT,
    "tulu_rlvr": open_instruct.FORMAT,
    "openai_preference": openai_jsonl.PREFERENCE,
    "openai_rft": openai_jsonl.REINFORCEMENT,
    "sharegpt": sharegpt.FORMAT,
    "alpaca": alpaca.FORMAT,
    "axolotl_segments": axolotl.FORMAT,
    "trl_stepwise": trl_types.STEPWISE,
    "trl_kto": trl_types.UNPAIRED,
    "trl_implicit_preference": trl_types.IMPLICIT_PREFERENCE,
    "trl_text": trl_types.TEXT,
    "nemo_preference": nemo_rl.PREFERENCE,
    "openrlhf": openrlhf.FORMAT,
    "nemo_response": nemo_rl.RESPONSE,
    "slime": slime.FORMAT,
    "gsm8k": gsm8k.FORMAT,
    "math": hendrycks_math.FORMAT,
    "mbpp": mbpp.FORMAT,
    "countdown": countdown_tasks.FORMAT,
    "prime": prime.FORMAT,
    "hh_rlhf": hh_rlhf.FORMAT,
    "ultrafeedback": ultrafeedback.FORMAT,
    "tldr": tldr.FORMAT,
}


def recognised(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The first format that all of the first rows are of; None where the columns are ours or nobody's."""
    tried = list(rows[:TRIED])
    for name, form in FORMATS.items():
        if form.matches is not None and tried and all(form.matches(row) for row in tried):
            return name
    return None


def convert(row: Mapping[str, Any], name: str, *, origin: str, where: str) -> Row:
    """The row in our columns, its own kept. Raises ValueError naming the row, the column and the format;
    Unsupported where it has all and cannot be judged."""
    form = FORMATS[name]
    missing = [column for column in form.columns if column not in row]
    if missing:
        have = ", ".join(sorted(row))
        raise ValueError(f"{where}: {origin} has no column {missing[0]!r}, which format {name!r} reads; have: {have}")
    try:
        return {**row, **form.convert(row)}
    except UnsupportedRow:
        raise
    except (ValueError, TypeError, KeyError, SyntaxError, AttributeError, IndexError) as exc:
        reason = f"{type(exc).__name__}: {exc}" if not isinstance(exc, ValueError) else str(exc)
        raise ValueError(f"{where}: {origin} is not of format {name!r}: {reason}") from exc


def own_text(prompt: str, name: str | None) -> str:
    """The prompt without the words that its format gives to every row."""
    wording = FORMATS[name].wording if name and name in FORMATS else None
    if wording is None:
        return prompt
    filled = re.fullmatch("(.*)".join(map(re.escape, re.split(r"\{\w+\}", wording))), prompt, re.DOTALL)
    return "\n".join(filled.groups()) if filled else prompt
