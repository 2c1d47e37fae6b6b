"""Which tests are too slow for `make check`, as measured: the functions that tests/slow_tests.txt names.

    make test ARGS="-v --durations=0 --durations-min=0.2" | tee log; python -m tests.slow_tests log

writes the list again from what pytest measured, so that `make check` stays short.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

LIST = Path(__file__).with_suffix(".txt")
SLOW_S = 0.5  # setup, call and teardown of one case
TIMED = re.compile(r"\s*([\d.]+)s (?:call|setup|teardown)\s+(tests/\S.*)")


def slow_functions() -> frozenset[str]:
    """`tests/FOLDER/test_FILE.py::test_NAME`, without parameters."""
    return frozenset(LIST.read_text().split())


def measured_slow(log: Iterable[str]) -> list[str]:
    """The functions of which one case takes SLOW_S, from the lines of pytest's `--durations=0`."""
    seconds = defaultdict[str, float](float)
    for line in log:
        if timed := TIMED.match(line):
            seconds[timed[2].strip()] += float(timed[1])
    return sorted({case.partition("[")[0] for case, taken in seconds.items() if taken >= SLOW_S})


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as lines:
        LIST.write_text("".join(f"{name}\n" for name in measured_slow(lines)))
