"""Grade a file without any model: rows in, verdicts out, in order, with only a window of rows in memory."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from verifiers import Verdict, Verifier, broken
from verifiers.deadline import DeadlinePool, Job

ROWS_PER_CALL = 16
CALLS_IN_FLIGHT = 64  # the window: how many calls are read ahead of the slowest row

Row = tuple[str, dict[str, Any]]


def read_rows(lines: Iterable[str], source: str) -> Iterator[Row]:
    """(completion, task) of each JSON line; the task is the object under `task`, or the row's other fields.

    Raises ValueError naming the line if a row is not such an object. Blank lines are skipped.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"{source}:{number}: not JSON ({exc}); each line is one object") from None
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
            raise ValueError(
                f'{source}:{number}: {_not_a_row(row)}; a row is {{"completion": "text", "task": {{...}}}}'
            )
        task = row.pop("task", {})
        if not isinstance(task, dict):
            raise ValueError(f"{source}:{number}: `task` is {type(task).__name__}, not an object")
        completion = row.pop("completion")
        yield completion, row | task


def _not_a_row(row: Any) -> str:
    if not isinstance(row, dict):
        return "no object"
    if "completion" not in row:
        return f"no key 'completion'; have: {', '.join(row) or 'none'}"
    shown = json.dumps(row["completion"])
    return f"the completion is {shown if len(shown) <= 80 else shown[:77] + '...'}, not text"


def verdicts(verifier: Verifier, rows: Iterator[Row], *, threads: int, timeout_s: float) -> Iterator[Verdict]:
    """One verdict per row, in order. A late call is repeated row by row, and a row that is late again is `error`."""
    pool = DeadlinePool(threads)
    size = ROWS_PER_CALL if verifier.grades_batches else 1

    def submit(chunk: list[Row]) -> Job:
        return pool.submit(lambda: verifier.grade([c for c, _ in chunk], [t for _, t in chunk]), timeout_s)

    def finish(chunk: list[Row], job: Job) -> list[Verdict]:
        pool.wait([job])
        if job.exception is not None:
            raise job.exception
        if not job.late:
            return job.result
        if len(chunk) == 1:
            return [broken(f"{verifier.name}: no verdict within {timeout_s:g} s")]
        return [finish([row], each)[0] for row, each in [(row, submit([row])) for row in chunk]]

    in_flight: deque[tuple[list[Row], Job]] = deque()
    while chunk := list(islice(rows, size)):
        in_flight.append((chunk, submit(chunk)))
        if len(in_flight) >= CALLS_IN_FLIGHT:
            yield from finish(*in_flight.popleft())
    while in_flight:
        yield from finish(*in_flight.popleft())
    pool.close()


class ProgressLine:
    """A progress line on stderr: twice per second on a terminal, every ten seconds elsewhere, and one at the end."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name, self._stream, self._terminal = name, stream, stream.isatty()
        self._started = self._last_report = time.monotonic()
        self.counts: Counter[str] = Counter()

    def add(self, verdict: Verdict) -> None:
        self.counts[verdict.status] += 1
        now = time.monotonic()
        if now - self._last_report > (0.5 if self._terminal else 10.0):
            self._last_report = now
            self._stream.write(self._line() + ("\r" if self._terminal else "\n"))
            self._stream.flush()

    def end(self) -> None:
        self._stream.write(self._line() + "\n")

    def _line(self) -> str:
        n, seconds = self.counts.total(), max(1e-9, time.monotonic() - self._started)
        shares = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
        return f"{self._name}: {n} graded ({shares or 'no rows'}), {n / seconds:.0f} per second"


def grade_file(verifier: Verifier, source: str, target: str, *, threads: int, timeout_s: float) -> None:
    """Grade source into target; `-` is stdin and stdout. The target file is written completely or not at all.

    Raises ValueError for an input or output that cannot be opened or read.
    """
    progress = ProgressLine(verifier.name, sys.stderr)
    if target != "-" and Path(target).is_dir():
        raise ValueError(f"{target}: a directory; name a file")
    partial = Path(f"{target}.{os.getpid()}.partial")
    with contextlib.ExitStack() as stack:
        try:
            # newline: only \n ends a row; a JSON string may hold U+2028
            lines = sys.stdin if source == "-" else stack.enter_context(open(source, encoding="utf-8", newline="\n"))
            out = sys.stdout if target == "-" else stack.enter_context(partial.open("w", encoding="utf-8"))
        except OSError as exc:
            named = target if str(exc.filename) == str(partial) else exc.filename
            raise ValueError(f"{named}: {exc.strerror}") from None
        stack.callback(partial.unlink, missing_ok=True)
        try:
            for verdict in verdicts(verifier, read_rows(lines, source), threads=threads, timeout_s=timeout_s):
                out.write(json.dumps(asdict(verdict)) + "\n")
                progress.add(verdict)
        except UnicodeDecodeError as exc:
            raise ValueError(f"{source}: not UTF-8 at byte {exc.start} of a block") from None
        out.flush()
        if target != "-":
            partial.replace(target)
    progress.end()
