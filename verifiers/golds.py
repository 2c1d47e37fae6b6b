"""Check the golds of a data file before training: which rows can no answer ever pass?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from verifiers import GoldCheck, Verifier

SHOWN = 50  # rows printed unless --all is given


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


def check_file(
    verifier: Verifier, source: str, out: TextIO = sys.stdout, *, columns: Mapping[str, str] | None = None,
    shown: int = SHOWN,
) -> int:  # fmt: skip
    """Print the rows whose gold no answer can meet, and a summary. Returns the number of such rows.

    columns: field of the task -> the column that holds it. shown: rows printed at most.
    Raises ValueError for a file that cannot be read, or in which every row lacks a field of the task.
    """
    rows, found, lacking = 0, list[str](), ""
    complete = False
    try:
        with (
            sys.stdin if source == "-" else Path(source).open(encoding="utf-8", newline="\n") as lines,
            GoldCheck() as check,
        ):
            for number, read in read_tasks(lines, source):
                rows += 1
                task = read | {field: read[name] for field, name in (columns or {}).items() if name in read}
                missing = verifier.missing_fields(task)
                complete = complete or not missing
                if missing and not lacking:
                    lacking = f"{missing[0]!r}; have: {', '.join(read)}; name its column: --field {missing[0]}=COLUMN"
                if (fault := _fault(check, verifier, task, f"{source}:{number}")) is not None:
                    found.append(f"{source}:{number}: {fault}\n")
    except OSError as exc:
        raise ValueError(f"{exc.filename}: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise ValueError(f"{source}: not UTF-8 at byte {exc.start} of a block") from None
    if rows and not complete:
        raise ValueError(f"{source}: no row has a field {lacking}")
    out.writelines(found[:shown])
    if len(found) > shown:
        out.write(f"and {len(found) - shown} more; --all lists them\n")
    out.write(f"{verifier.name}: {rows} golds checked, {len(found)} can never be met\n")
    return len(found)
