"""Notices about data and models, printed once per process, by the main rank, to stderr (a program may read stdout)."""

from __future__ import annotations

import sys

from pipeline.distributed import ranks

_printed: set[str] = set()


def notice(line: str) -> None:
    """Print the line, unless this process has printed it before: plan, checks and stages each read the rows."""
    if ranks.is_main() and line not in _printed:
        _printed.add(line)
        print(line, file=sys.stderr, flush=True)


def forget() -> None:
    """Print every notice again; for tests."""
    _printed.clear()
