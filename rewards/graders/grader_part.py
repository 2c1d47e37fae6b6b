"""A grader as a reward part: called in chunks with a deadline, and once more row by row where a chunk fails.

The value is what the grader returns. The status is `pass` from `pass_at` on, else `fail`; a row that the grader cannot
score (an exception, None, a number that is not finite, a missed deadline) is `error`, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.batch import Batch, Outcome
from verifiers import Status
from verifiers._secrets import hidden
from verifiers.deadline import DeadlinePool, Job

ROWS_PER_CALL = 16


@dataclass(frozen=True, slots=True)
class GraderRow:
    """One sample as graders read it. task: the row's fields, with the part's `fields` and `task` applied."""

    prompt: str
    completion: str
    completion_ids: Sequence[int]
    task: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's answer for one row; value None: it could not score the row, for the reason in `detail`.

    malformed: no answer could be read from the completion; counts if the value does not pass.
    """

    value: float | None
    detail: str = ""
    malformed: bool = False


class Grader(Protocol):
    """Other people's grader behind one call."""

    def grade(self, rows: Sequence[GraderRow]) -> list[Grade]:
        """One Grade per row, in order. May raise: the rows are then graded one by one."""
        ...

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine and how to fix it; None if it can."""
        ...


@dataclass(frozen=True, slots=True)
class GraderPart:
    """A weighted grader. `task`: constant fields; `fields`: field the grader reads -> name of the row's column."""

    name: str
    weight: float
    grader: Grader
    pass_at: float
    timeout_s: float
    task: Mapping[str, Any]
    fields: Mapping[str, str]

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        rows = [self.row_of(batch, i) for i in range(len(batch))]
        chunks = [rows[i : i + ROWS_PER_CALL] for i in range(0, len(rows), ROWS_PER_CALL)]
        jobs = [self._submit(chunk, pool) for chunk in chunks]
        return lambda: [out for chunk, job in zip(chunks, jobs, strict=True) for out in self._finish(chunk, job, pool)]

    def row_of(self, batch: Batch, i: int) -> GraderRow:
        task = batch.tasks[i]
        renamed = {field: task[column] for field, column in self.fields.items() if column in task}
        row = {**task, **self.task, **renamed}
        return GraderRow(batch.prompts[i], batch.completions[i], list(batch.completion_ids[i]), row)

    def _submit(self, rows: list[GraderRow], pool: DeadlinePool) -> Job:
        return pool.submit(lambda: self._call(rows), self.timeout_s)

    def _call(self, rows: list[GraderRow]) -> list[Grade]:
        grades = self.grader.grade(rows)
        if len(grades) != len(rows):
            raise ValueError(f"returned {len(grades)} grades for {len(rows)} rows")
        return grades

    def _finish(self, rows: list[GraderRow], job: Job, pool: DeadlinePool) -> list[Outcome]:
        pool.wait([job])
        if not job.late and job.exception is None:
            return [self._outcome(grade) for grade in job.result]
        if len(rows) == 1:
            late = f"no grade within {self.timeout_s:g} s"
            why = late if job.late else f"{type(job.exception).__name__}: {job.exception}"
            return [self._outcome(Grade(None, why))]
        alone = [(row, self._submit([row], pool)) for row in rows]
        return [self._finish([row], again, pool)[0] for row, again in alone]

    def _outcome(self, grade: Grade) -> Outcome:
        if grade.value is None or not math.isfinite(grade.value):
            why = grade.detail or ("not scorable" if grade.value is None else f"the grade is {grade.value}")
            return Outcome(None, "error", hidden(f"{self.name}: {why}"))
        status: Status = "pass" if grade.value >= self.pass_at else "malformed" if grade.malformed else "fail"
        return Outcome(grade.value, status, grade.detail or f"{self.name}: {grade.value:g}")


__all__ = ["Grade", "Grader", "GraderPart", "GraderRow"]
