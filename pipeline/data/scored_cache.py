"""Lossless cache of scored rollouts, so a resumed stage reuses them bit for bit (rollouts.jsonl rounds its floats)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.records import Prompt, Rollout, Scored


def save_scored(path: Path, scored: Sequence[Scored], requests: Sequence[Prompt]) -> None:
    """One line each. A prompt of `requests` is saved as its index in it, any other (a later turn's) in full."""
    indices = {id(prompt): index for index, prompt in enumerate(requests)}
    with path.open("w", encoding="utf-8") as out:
        for one in scored:
            prompt = one.rollout.prompt
            row = _fields(one, skip="rollout") | {"rollout": _fields(one.rollout, skip="prompt")}
            row["prompt"] = indices[id(prompt)] if id(prompt) in indices else _fields(prompt)
            out.write(json.dumps(row, separators=(",", ":")) + "\n")


def load_scored(path: Path, requests: Sequence[Prompt]) -> list[Scored]:
    out = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            saved = row.pop("prompt")
            prompt = requests[saved] if isinstance(saved, int) else Prompt(**_tuples(saved))
            rollout = Rollout(prompt=prompt, **_tuples(row.pop("rollout")))
            out.append(Scored(rollout=rollout, **_tuples(row)))
    return out


def _fields(record: Any, skip: str = "") -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.name != skip}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; the records have nothing else."""
    return {k: _tuple(v) for k, v in row.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list) else value
