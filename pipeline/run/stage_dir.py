"""One stage on disk. Everything written is complete or absent.

runs/NAME/STAGE/begun.json       what it was begun with: an unfinished stage edited since starts over
                manifest.json    written last: a stage without it is not complete
                metrics.jsonl    one object per step; the same bytes whether or not the run was killed
                timing.jsonl     seconds and rates, which no two runs share
                rollouts.jsonl   scored rollouts, one per line
                difficulty.jsonl what each prompt earned each time it was sampled, of a policy stage
                model/           what the next stage starts from
                checkpoints/     step-N/ and done-KEY/
                stopped.json     of a stage that an alarm stopped: which one; gone when the stage runs again
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.distributed import process
from pipeline.run.begun import BegunRecord
from pipeline.run.checkpoints import Checkpoints
from pipeline.run.files import atomic_write, dump_json, fsync, fsync_tree, sha256_tree
from pipeline.run.manifest import git_revision, read_manifest, versions
from pipeline.run.stage_logs import StageLogs

STOPPED = "stopped.json"
NOT_OUTPUTS = ("manifest.json", "begun.json", STOPPED, "timing.jsonl", "checkpoints")


class StageDir:
    """The life of a stage's directory: opened, completed or set aside. `root` is runs/NAME, `name` the stage.

    logs: what it appends; checkpoints: what it saves while it runs; begun: what it was begun with.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.path = root / name
        self.logs = StageLogs(self.path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", self.logs)
        self.begun = BegunRecord(self.path / "begun.json")

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self) -> dict[str, Any] | None:
        return read_manifest(self.manifest_path)

    def open(self, identity: Mapping[str, Any] | None = None) -> None:
        """Begin, or continue an interrupted attempt. identity: config and code, to compare a later attempt with."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.manifest_path.unlink(missing_ok=True)  # it runs again: never complete and half rewritten at once
        (self.path / STOPPED).unlink(missing_ok=True)
        self.logs.open()
        if identity is not None:
            self.begun.open(identity)
        if self.begun.tracked:
            self.logs.reported = self.logs.size("metrics.jsonl")

    def note_alarm(self, message: str) -> None:
        """Record the alarm that stopped the stage."""
        atomic_write(self.path / STOPPED, dump_json({"alarm": message}) + "\n")

    def set_aside(self) -> Path:
        """Move the output of an earlier config or code to .replaced/, and return its new path.

        A finished stage replaces the one set aside before it; an unfinished one never replaces a finished one, and goes
        beside it.
        """
        aside = self.root / ".replaced" / self.name
        if (aside / "manifest.json").is_file() and not self.manifest_path.is_file():
            aside = aside.with_name(f"{self.name}.unfinished")
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, aside)
        return aside

    def complete(
        self,
        *,
        config: Any,
        seed: int,
        parents: Mapping[str, str],
        inputs: Mapping[str, str],
        metrics: Mapping[str, Any],
        code: Mapping[str, str],
    ) -> dict[str, Any]:
        """Hash the outputs and write the manifest, last and atomically; checkpoints are removed after it."""
        self.logs.truncate()
        parts = sorted(p for p in self.path.iterdir() if p.name not in NOT_OUTPUTS and not p.name.startswith("."))
        outputs: dict[str, str] = {}
        for part in parts:
            fsync_tree(part) if part.is_dir() else fsync(part)
            outputs |= sha256_tree(part, self.path)
        manifest = {
            "stage": self.name,
            "status": "complete",
            "parents": dict(parents),
            "config": config,
            "inputs": dict(inputs),
            "outputs": outputs,
            "metrics": dict(metrics),
            "seed": seed,
            "git": git_revision(),
            "code": dict(code),
            "versions": versions(),
            "tokens": dict(self.logs.tokens),
            "wall_s": round(self.logs.elapsed_s(), 3),
            "peak_rss_bytes": process.peak_rss(),
        }
        atomic_write(self.manifest_path, dump_json(manifest, indent=1) + "\n")
        self.tidy()
        return manifest

    def tidy(self) -> None:
        """Remove what only an unfinished stage needs."""
        shutil.rmtree(self.checkpoints.path, ignore_errors=True)
        for left in self.path.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        self.begun.path.unlink(missing_ok=True)


__all__ = ["StageDir"]
