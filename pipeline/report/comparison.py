"""What a comparison adds to a report: its table, its plots' data, and the judged samples of its first seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.collect import Stage, read_stage, read_stages
from pipeline.runs import read_manifest


@dataclass(frozen=True, slots=True)
class Compared:
    stages: list[Stage]
    data: dict[str, Any]


def read(place: Path) -> Compared | None:
    """The comparison at `place`, or None where it is a run of another kind. Its stages are those of the first seed."""
    manifest = read_manifest(place / "compare" / "manifest.json")
    if manifest is None or not manifest["metrics"].get("runs"):
        return None
    first = place / str(manifest["metrics"]["runs"][0])
    return Compared([*read_stages(first), read_stage(place / "compare")], dict(manifest["metrics"]))
