"""What a stage saves while it runs: checkpoints of steps and finished pieces of work, each complete or absent.

A directory is sealed by an index.json that names every file with its hash, and the lengths of the logs at that time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.distributed import ranks
from pipeline.run.files import atomic_write, dump_json, fsync_tree, put, sha256_file, sha256_tree, writing
from pipeline.run.stage_logs import StageLogs

KEPT_CHECKPOINTS = 2


def path_step(path: Path) -> int:
    """N of step-N or best-N."""
    return int(path.name.rpartition("-")[2])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    path: Path


@dataclass(slots=True)
class Checkpoints:
    """checkpoints/ of one stage: step-N of a training loop, and done-KEY for a piece of work that is done once."""

    path: Path
    logs: StageLogs
    keys: set[str] = field(default_factory=set)  # passed to `once` in this process

    @property
    def stage(self) -> str:
        return self.path.parent.name

    # --- sealed directories -------------------------------------------------------------------------------------

    def seal(self, directory: Path, **notes: Any) -> None:
        """Name every file of a directory by its hash in its index.json; from then on it is complete."""
        (directory / "index.json").unlink(missing_ok=True)  # of an earlier seal: it cannot name itself
        index = {**notes, "files": sha256_tree(directory, directory), "mark": self.logs.mark()}
        atomic_write(directory / "index.json", dump_json(index))

    def index_of(self, directory: Path) -> dict[str, Any] | None:
        """The index of a sealed directory, or None where it is missing, incomplete or altered."""
        try:
            index: dict[str, Any] = json.loads((directory / "index.json").read_text())
            intact = all(sha256_file(directory / name) == digest for name, digest in index["files"].items())
            logged = self.logs.holds(index["mark"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # whatever is wrong with it, it is written again
        return index if intact and logged else None

    def _fill(self, directory: Path, write: Callable[[Path], None], **notes: Any) -> None:
        beside = directory.with_name(f".{directory.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        with writing(directory):
            write(beside)
            self.seal(beside, **notes)
            put(beside, directory)

    # --- pieces -------------------------------------------------------------------------------------------------

    def once(self, key: str, make: Callable[[Path], None]) -> Path:
        """A directory filled by `make`, once: a stage that was killed reads what its earlier attempt finished.

        Calls come in the same order in every attempt. `forget` may have emptied the directory since.
        """
        self.claim(key)
        directory = self.path / f"done-{key}"
        index = ranks.from_main(lambda: self.index_of(directory))
        if index is not None:
            self.logs.go_to(index["mark"])
        else:
            if directory.exists():
                print(f"{self.stage}: {directory} is damaged and is written again", flush=True)
            # the log is not truncated here: a trainer's checkpoint counts only with the rows that lead to it
            self._fill(directory, make)
        ranks.barrier()  # followers read what is there now
        return directory

    def claim(self, key: str) -> None:
        assert key not in self.keys, f"two pieces of {self.stage} are saved under one name: {key}"
        self.keys.add(key)

    def forget(self, key: str, *, keep: str) -> None:
        """Free the space of a finished piece, all but the file `keep`; that it is finished stays known."""
        directory = self.path / f"done-{key}"
        index = self.index_of(directory)
        if index is None:
            return
        atomic_write(directory / "index.json", dump_json({**index, "files": {keep: index["files"][keep]}}))
        for other in directory.iterdir():
            if other.name not in (keep, "index.json"):
                shutil.rmtree(other) if other.is_dir() else other.unlink()

    # --- steps --------------------------------------------------------------------------------------------------

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """`write` fills a directory, which becomes step-N at once or not at all. Older ones beyond two are removed.

        With them go the pieces of earlier steps, under keys that begin with step-N.
        """
        self._fill(self.path / f"step-{step}", write, step=step)
        pieces = [(int(piece.name.split("-")[2]), piece) for piece in self.path.glob("done-step-*")]
        sampled_ahead = [piece for number, piece in pieces if number >= step]  # with weights that are gone now
        self.flush(self.path / f"step-{step}", *sampled_ahead)
        *old, oldest = self.steps()[: 1 - KEPT_CHECKPOINTS] or self.steps()[:1]
        for checkpoint in old:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
        for number, piece in pieces:
            if number < oldest.step:
                shutil.rmtree(piece, ignore_errors=True)
        for path in self._best()[:-1]:  # of those that a run resumed from the oldest checkpoint may choose, the last
            if any(path_step(path) < path_step(later) <= oldest.step for later in self._best()):
                shutil.rmtree(path, ignore_errors=True)

    def flush(self, *directories: Path) -> None:
        """Write to disk, with the logs, before an older checkpoint is removed: a machine that loses power keeps one.

        Pieces of later steps are not flushed: after a power failure their hashes show it, and they are written again.
        """
        for directory in directories:
            fsync_tree(directory)
        self.logs.fsync()

    # --- the best step ------------------------------------------------------------------------------------------

    def best_path(self, step: int) -> Path:
        return self.path / f"best-{step}"

    def save_best(self, step: int, write: Callable[[Path], None]) -> None:
        """What `write` fills a directory with, kept until a better step is in the oldest checkpoint."""
        self._fill(self.best_path(step), write)
        self.flush(self.best_path(step))

    def drop_best_after(self, step: int) -> None:
        """Steps after the checkpoint that a run resumes from are done again, and may be other than they were."""
        for path in self._best():
            if path_step(path) > step:
                shutil.rmtree(path, ignore_errors=True)

    def _best(self) -> list[Path]:
        return sorted(self.path.glob("best-*"), key=path_step) if self.path.is_dir() else []

    def has(self, step: int) -> bool:
        return (self.path / f"step-{step}").is_dir()

    def steps(self) -> list[Checkpoint]:
        found = self.path.glob("step-*") if self.path.is_dir() else []
        return sorted((Checkpoint(int(p.name[5:]), p) for p in found), key=lambda c: c.step)

    def resume(self) -> Checkpoint | None:
        """The newest checkpoint whose files still hash to its index; logs are truncated to it. None: start over."""
        newest = ranks.from_main(self.newest)
        self.logs.tokens = ranks.from_main(lambda: self.logs.tokens)
        return newest

    def newest(self) -> Checkpoint | None:
        for checkpoint in reversed(self.steps()):
            index = self.index_of(checkpoint.path)
            if index is None:
                print(f"{self.stage}: {checkpoint.path} is damaged; going back to the one before", flush=True)
                shutil.rmtree(checkpoint.path, ignore_errors=True)
                continue
            self.logs.go_to(index["mark"])
            self.logs.truncate()
            return checkpoint
        self.logs.truncate()
        return None
