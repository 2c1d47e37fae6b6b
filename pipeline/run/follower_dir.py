"""StageDir for ranks > 0: takes part in the same collective calls in the same order, and writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.distributed import ranks
from pipeline.run.checkpoints import Checkpoint, Checkpoints
from pipeline.run.stage_dir import StageDir
from pipeline.run.stage_logs import StageLogs


class FollowerLogs(StageLogs):
    def append(self, name: str, rows: list[Any]) -> None:
        """Rank 0 does."""

    def truncate(self) -> None:
        """Rank 0 does."""

    def log_timing(self, timing: Mapping[str, Any]) -> None:
        """Rank 0 does."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Rank 0 does."""


class FollowerCheckpoints(Checkpoints):
    """What several ranks make together, each takes part in; rank 0 keeps it, and all read it from the disk they share.

    Where rank 0 decides (is there a checkpoint? was this piece finished?) the others wait for its answer.
    """

    def once(self, key: str, make: Callable[[Path], None]) -> Path:
        self.claim(key)
        index: Any = ranks.from_main(lambda: None)
        if index is not None:
            self.logs.go_to(index["mark"])
        else:
            with tempfile.TemporaryDirectory() as scratch:
                make(Path(scratch))
        ranks.barrier()
        return self.path / f"done-{key}"

    def forget(self, key: str, *, keep: str) -> None:
        """Rank 0 does."""

    def newest(self) -> Checkpoint | None:
        return None  # rank 0's answer counts


class FollowerDir(StageDir):
    def __init__(self, root: Path, name: str) -> None:
        super().__init__(root, name)
        self.logs = FollowerLogs(self.path)
        self.checkpoints = FollowerCheckpoints(self.path / "checkpoints", self.logs)

    def open(self, identity: Mapping[str, Any] | None = None) -> None:
        """Rank 0 does."""

    def note_alarm(self, message: str) -> None:
        """Rank 0 does."""

    def complete(self, **manifest: Any) -> dict[str, Any]:
        return {"wall_s": self.logs.elapsed_s()}
