"""begun.json: what an unfinished stage was begun with, so that an attempt with other inputs is not continued."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.errors import LineageError
from pipeline.run.files import atomic_write, dump_json
from pipeline.run.manifest import read_manifest


@dataclass(slots=True)
class BegunRecord:
    """config, code, parents, inputs and generator of a stage under way. Empty, and never written, before `open`."""

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    def open(self, identity: Mapping[str, Any]) -> None:
        """identity: config and code, to compare a later attempt with. What an earlier attempt recorded is kept."""
        before = read_manifest(self.path) or {}
        noted = {kind: dict(before.get(kind) or {}) for kind in ("parents", "inputs")}
        self.record = {**identity, **noted, "generator": before.get("generator"), "tracker": before.get("tracker")}
        self._write()

    def depends(self, kind: str, on: Mapping[str, str]) -> None:
        """Record parents or inputs by their hash, at once: an unfinished stage is stale when they change."""
        known = self.record.get(kind)
        if known is not None and any(known.get(name) != sha for name, sha in on.items()):
            known.update(on)
            self._write()

    def drawn_by(self, generator: str) -> None:
        """Record which generator samples. Raises LineageError if an earlier attempt of this stage had another one."""
        known = self.record.get("generator", generator)
        if known not in (None, generator):
            stage = self.path.parent
            raise LineageError(
                f"{stage}: begun with the generator {known}, which does not start now, and {generator} would sample "
                f"other completions; fix {known}, or delete {stage} to start over"
            )
        if known is None:
            self.record["generator"] = generator
            self._write()

    @property
    def tracked(self) -> bool:
        """Whether an earlier attempt of this stage reported to trackers."""
        return bool(self.record.get("tracker"))

    def tracker_run(self) -> str:
        """The name of this stage's curve in a tracker: its own for each time the stage is begun, the same on resume."""
        if not self.record.get("tracker"):
            self.record["tracker"] = f"{self.path.parent.name}-{secrets.token_hex(3)}"
            self._write()
        return str(self.record["tracker"])

    def _write(self) -> None:
        atomic_write(self.path, dump_json(self.record, indent=1) + "\n")
