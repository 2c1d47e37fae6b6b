"""Check the golds of a data file before training: which rows can no answer ever pass?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from verifiers import GoldCheck, Verifier


def read_tasks(lines: TextIO, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, task) of each JSON line: the object under `task`, or the row itself. Blank lines are skipped.

    Raises ValueError naming the line that is not a JSON object.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"{source}:{number}: not JSON ({exc}); each line is one object") from None
        if not isinstance(row, dict):
            raise ValueError(f"{source}:{number}: a row is an object with the task's fields, or with `task`")
        task = row.get("task", row)
        if not isinstance(task, dict):
            raise ValueError(f"{source}:{number}: `task` is {type(task).__name__}, not an object")
        yield number, task


def _fault(check: GoldCheck, verifier: Verifier, task: dict[str, Any], at: str) -> str | None:
    try:
        return check.fault(verifier, task)
    except ValueError as exc:
        raise ValueError(f"{at}: {exc}") from None


def check_file(verifier: Verifier, source: str, out: TextIO = sys.stdout) -> int:
    """Print every row whose gold no answer can meet, and a summary. Returns the number of such rows.

    Raises ValueError for a file that cannot be read.
    """
    rows = faults = 0
    try:
        with (
            sys.stdin if source == "-" else Path(source).open(encoding="utf-8", newline="\n") as lines,
            GoldCheck() as check,
        ):
            for number, task in read_tasks(lines, source):
                rows += 1
                if (fault := _fault(check, verifier, task, f"{source}:{number}")) is not None:
                    faults += 1
                    out.write(f"{source}:{number}: {fault}\n")
    except OSError as exc:
        raise ValueError(f"{exc.filename}: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise ValueError(f"{source}: not UTF-8 at byte {exc.start} of a block") from None
    out.write(f"{verifier.name}: {rows} golds checked, {faults} can never be met\n")
    return faults
