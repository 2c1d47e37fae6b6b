"""Lines about data that a person should see: on stderr, for output may be read by a program; once, from one rank."""

from __future__ import annotations

import sys

from pipeline.distributed import ranks

_printed: set[str] = set()


def notice(line: str) -> None:
    """Print the line, unless this process has printed the same one already: plan, checks and stages read rows anew."""
    if ranks.is_main() and line not in _printed:
        _printed.add(line)
        print(line, file=sys.stderr, flush=True)


def forget() -> None:
    """Print them again: of tests."""
    _printed.clear()
