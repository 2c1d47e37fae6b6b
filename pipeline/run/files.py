"""Files that are complete or absent, their hashes, and one message for a full or read-only disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def atomic_write(path: Path, data: str | bytes) -> None:
    """The new file or the old one, also when the machine dies: written to a temporary file, flushed, renamed."""
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
    if indent is None:
        return _LINE.encode(_plain(value))
    return json.dumps(_plain(value), indent=indent, sort_keys=True, allow_nan=False)


_LINE = json.JSONEncoder(sort_keys=True, allow_nan=False)  # once: a new encoder per line takes as long as the line
_AS_IT_IS = {str, int, bool, type(None)}
_NUMBERS = {int, float}


def _plain(value: Any) -> Any:
    kind = type(value)  # most values are of a built-in type, and an isinstance of Mapping is slow
    if kind in _AS_IT_IS:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is list or kind is tuple:
        return _plain_list(value)
    if kind is dict:
        return {k if type(k) is str else str(k): v if type(v) in _AS_IT_IS else _plain(v) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return _plain_list(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value)


def _plain_list(values: Sequence[Any]) -> list[Any]:
    kinds = set(map(type, values))  # thousands of token ids and log-probs per line: not one by one
    if kinds <= _AS_IT_IS or (kinds <= _NUMBERS and all(map(math.isfinite, values))):
        return list(values)
    return [_plain(v) for v in values]


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL that may still be written to: a last line without a newline is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without a newline, left by a crash or a full disk: the next row would be appended to it."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def sha256_file(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def sha256_tree(path: Path, relative_to: Path) -> dict[str, str]:
    """{relative path: sha256} of one file or of every file below a directory."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(relative_to)): sha256_file(p) for p in files}


def sha256_json(value: Any) -> str:
    return hashlib.sha256(dump_json(value).encode()).hexdigest()


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        fsync(path)


def copy_tree(source: Path, target: Path) -> None:
    """`target` becomes a copy of the directory `source`; a reader sees either the old or the new one, never a mix."""
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    put(beside, target)


def put(finished: Path, target: Path) -> None:
    """Move a finished directory to its name, replacing what is there."""
    if target.exists():
        shutil.rmtree(target)
    os.replace(finished, target)


FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Libraries report a full disk in their own ways; here all of them become one OSError that names the path."""
    try:
        yield
    except OSError:
        raise
    except Exception as exc:  # safetensors, torch and pyarrow share no base class; other errors are raised as they are
        text = f"{type(exc).__name__}: {exc}".lower()
        full = "no space left" in text or "os error 28" in text or "disk quota" in text
        if full or ("streamwriter" in text and _free_bytes(path) < 1 << 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from exc
        raise


def _free_bytes(path: Path) -> int:
    existing = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    return shutil.disk_usage(existing).free


def disk_fault(exc: OSError) -> str | None:
    """One line for a disk that is full or not writable, with the fix; None for any other error."""
    path = exc.filename or "the run's directory"
    if exc.errno in FULL:
        return f"{path}: the disk is full; free space and run the same command to resume"
    if exc.errno in FORBIDDEN:
        return f"{path}: not writable ({exc.strerror}); fix its permissions, or choose another runs_dir=..."
    return None
