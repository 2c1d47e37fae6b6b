"""SkyRL: `prompt` as messages, `env_class`, and `reward_spec.ground_truth` (or `reward_model`, as verl has it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row, is_prompt, named_verifier, one_gold


def convert(row: Mapping[str, Any]) -> Row:
    spec = row.get("reward_spec") or row.get("reward_model")
    if not isinstance(spec, Mapping):
        raise ValueError("it has no reward_spec with a ground_truth")
    source = f"{row.get('data_source') or ''} {row['env_class']}"
    return {"gold": one_gold(spec.get("ground_truth"), "reward_spec.ground_truth"), **named_verifier(source)}


def matches(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("env_class"), str) and "reward_spec" in row and is_prompt(row.get("prompt"))


FORMAT = Format(convert, ("prompt", "env_class"), "SkyRL", matches=matches)
