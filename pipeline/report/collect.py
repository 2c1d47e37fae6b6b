"""Read what a run left on disk. Nothing is assumed complete: a stage may be running, killed, or of an older version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import recorded_kind
from pipeline.run.manifest import read_manifest
from pipeline.run.stage_dir import STOPPED
from pipeline.stages import seed_table
from pipeline.stats import is_number

POINTS = 500  # a curve with more points than pixels is thinned


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's directory. manifest is None while it runs or where it was killed."""

    name: str
    path: Path
    manifest: Mapping[str, Any] | None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)

    @property
    def block(self) -> Mapping[str, Any]:
        """The stage's own settings; empty where it has no manifest."""
        return (self.manifest or {}).get("config", {}).get("stage", {})

    @property
    def alarm(self) -> str | None:
        """The alarm that stopped it, in words."""
        return (read_manifest(self.path / STOPPED) or {}).get("alarm") if self.manifest is None else None

    @property
    def kind(self) -> str:
        return str(self.block.get("kind", self.name))

    @property
    def figures(self) -> Mapping[str, Any]:
        return (self.manifest or {}).get("metrics", {})

    @property
    def parents(self) -> list[str]:
        return list((self.manifest or {}).get("parents", {}))

    @property
    def tokens(self) -> int:
        """Sampled tokens."""
        return int((self.manifest or {}).get("tokens", {}).get("completion", 0))


def read_stages(directory: Path) -> list[Stage]:
    """The stages of a run directory, parents first; of a stage's directory, that one.

    Raises ConfigError where there is no run.
    """
    if not directory.is_dir():
        raise ConfigError(
            [f"{directory}: no such run directory; a run is in runs/NAME, where NAME is the YAML's `run`"]
        )
    if (directory / "manifest.json").is_file():
        return [read_stage(directory)]
    if (runs := runs_of_seeds(directory)) is not None:
        return read_stages(directory / runs["runs"][0])
    found = [read_stage(p) for p in sorted(directory.iterdir()) if is_stage(p)]
    if not found:
        raise ConfigError([f"{directory}: holds no stage: no directory in it has a manifest.json or a metrics.jsonl"])
    return parents_first(found)


def runs_of_seeds(directory: Path) -> dict[str, Any] | None:
    """The table of several seeds that `run ... seeds=1,2,3` left; None for any other directory."""
    try:
        table = json.loads((directory / seed_table.NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) and table.get("runs") else None


def is_stage(directory: Path) -> bool:
    return directory.is_dir() and any(
        (directory / n).is_file() for n in ("manifest.json", "metrics.jsonl", "rollouts.jsonl")
    )


def read_stage(directory: Path) -> Stage:
    rows = [list(read_rows(directory / name)) for name in ("metrics.jsonl", "timing.jsonl")]
    return Stage(directory.name, directory, read_manifest(directory / "manifest.json"), *rows)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL that may be missing or being written. Raises ConfigError naming a line that is not one."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return  # half written
            try:
                row = json.loads(line)
            except json.JSONDecodeError as exc:
                raise ConfigError(
                    [f"{path}:{number}: not JSON ({exc.msg}); remove the stage and run it again"]
                ) from exc
            if isinstance(row, dict):
                yield row


def tail_rows(path: Path, *, size: int) -> list[dict[str, Any]]:
    """The complete rows in the last `size` bytes of a JSONL that may be missing or being written."""
    if not path.is_file():
        return []
    with path.open("rb") as log:
        log.seek(max(path.stat().st_size - size, 0))
        cut = log.tell() > 0
        lines = log.read().split(b"\n")
    out = []
    for line in lines[1 if cut else 0 : -1]:
        try:
            row = json.loads(line)
        except ValueError:  # a line that is being rewritten
            continue
        if isinstance(row, dict):
            out.append(row)
    return out


def parents_first(stages: Sequence[Stage]) -> list[Stage]:
    """Topological order; among stages that could come next, the usual order of a chain. A cycle keeps its order."""
    left = sorted(stages, key=lambda s: (recorded_kind(s.kind).order, s.name))
    names = {s.name for s in left}
    out: list[Stage] = []
    while left:
        done = {s.name for s in out}
        ready = next((s for s in left if all(p in done or p not in names for p in s.parents)), left[0])
        out.append(ready)
        left.remove(ready)
    return out


def curves(stage: Stage) -> list[dict[str, Any]]:
    """[{label, x, series: {name: [number or None]}}]: one entry per part of the stage (a round, a control, all)."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in stage.metrics:
        parts.setdefault(str(row.get("part", "")), []).append(row)
    out = []
    for label, rows in parts.items():
        kept = thinned([r for r in rows if is_number(r.get("step"))])
        names = sorted({k for r in kept for k, v in r.items() if is_number(v)} - {"step", "epoch"})
        series = {n: [r[n] if is_number(r.get(n)) else None for r in kept] for n in names}
        out.append({"label": label, "x": [r["step"] for r in kept], "series": series})
    return out


def thinned(rows: Sequence[dict[str, Any]], limit: int = POINTS) -> list[dict[str, Any]]:
    """At most `limit` rows, evenly, the last one kept."""
    if len(rows) <= limit:
        return list(rows)
    stride = -(-len(rows) // limit)
    return [*rows[:-1:stride], rows[-1]]
