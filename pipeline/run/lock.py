"""One process per run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.run.errors import LineageError

_held: set[Path] = set()


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the run directory. Raises LineageError where another process holds it; the kernel releases it if we die.

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
