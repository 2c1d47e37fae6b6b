"""One process per run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.errors import LineageError

_held: set[Path] = set()
FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the run directory. Raises LineageError where another process holds it, or where it cannot be created; the
    kernel releases it if we die.

    A POSIX lock, which a forked child does not inherit: workers that outlive a killed run do not keep it locked.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise LineageError(
            f"{root} cannot be created ({exc.strerror}); choose another place with runs_dir=..."
        ) from exc
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


def holder(root: Path) -> int | None:
    """The process that runs this run directory, or None. Asks without locking, so it disturbs no run that starts.

    A process does not see its own lock.
    """
    try:
        with (root / ".lock").open("rb") as handle:
            question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_, process = struct.unpack(FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, question))
    except OSError:
        return None
    return int(process) if kind != fcntl.F_UNLCK else None
