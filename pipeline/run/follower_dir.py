"""A stage's directory on a rank that does not write it: the same calls in the same order, and no trace on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.distributed import ranks
from pipeline.run.stage_dir import Checkpoint, StageDir


class Onlooker(StageDir):
    """What several ranks make together, each takes part in; rank 0 keeps it, and all read it from the disk they share.

    Where rank 0 decides (is there a checkpoint? was this piece finished?) its answer is waited for.
    """

    def open(self, identity: Mapping[str, Any] | None = None) -> None:
        """Rank 0 does."""

    def once(self, key: str, make: Callable[[Path], None]) -> Path:
        assert key not in self.given, f"two pieces of {self.name} are kept under one name: {key}"
        self.given.add(key)
        index = ranks.from_main(lambda: None)
        if index is not None:
            self.go_to(index["mark"])
        else:
            with tempfile.TemporaryDirectory() as scratch:
                make(Path(scratch))
        ranks.barrier()
        return self.checkpoints / f"done-{key}"

    def forget(self, key: str, *, keep: str) -> None:
        """Rank 0 does."""

    def _newest(self) -> Checkpoint | None:
        return None  # rank 0's answer counts

    def _note_begun(self) -> None:
        """Rank 0 does."""

    def _append(self, name: str, rows: list[Any]) -> None:
        """Rank 0 does."""

    def _cut(self) -> None:
        """Rank 0 does."""

    def log_timing(self, timing: Mapping[str, Any]) -> None:
        """Rank 0 does."""

    def complete(self, **manifest: Any) -> dict[str, Any]:
        return {"wall_s": self.elapsed_s()}
