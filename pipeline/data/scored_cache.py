"""Scored rollouts on disk between two tries of a stage: every float comes back as the same bits, unlike in a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.records import Prompt, Rollout, Scored


def keep_scored(path: Path, scored: Sequence[Scored], asked: Sequence[Prompt]) -> None:
    """One line each. A prompt that was asked is kept as its place in `asked`, another (a later turn's) whole."""
    places = {id(prompt): place for place, prompt in enumerate(asked)}
    with path.open("w", encoding="utf-8") as out:
        for one in scored:
            prompt = one.rollout.prompt
            row = _fields(one, skip="rollout") | {"rollout": _fields(one.rollout, skip="prompt")}
            row["prompt"] = places.get(id(prompt)) if id(prompt) in places else _fields(prompt)
            out.write(json.dumps(row, separators=(",", ":")) + "\n")


def kept_scored(path: Path, asked: Sequence[Prompt]) -> list[Scored]:
    out = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            at = row.pop("prompt")
            prompt = asked[at] if isinstance(at, int) else Prompt(**_tuples(at))
            rollout = Rollout(prompt=prompt, **_tuples(row.pop("rollout")))
            out.append(Scored(rollout=rollout, **_tuples(row)))
    return out


def _fields(record: Any, skip: str = "") -> dict[str, Any]:
    found = {f.name: getattr(record, f.name) for f in fields(record) if f.name != skip}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in found.items()}


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; the records have nothing else."""
    return {k: _tuple(v) for k, v in row.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list) else value
