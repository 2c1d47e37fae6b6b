"""The parts a composite is made of. A part turns a batch into one Outcome per row, through jobs with a deadline.

`start` hands the work to the pool and returns at once; `finish` collects it. A row that cannot be scored is
Outcome(None): it moves no other row and is never a zero.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewards.batch import Batch, Outcome
from rewards.shaping import RewardFunction
from rewards.steps import potential_differences
from verifiers import Verdict, Verifier, broken
from verifiers._secrets import hidden
from verifiers.deadline import DeadlinePool, Job

ROWS_PER_CALL = 16  # for a verifier that grades many rows in one call
MOST_ROWS = 64  # in one job, of a verifier that has proved quick
QUICK_SHARE = 0.02  # of the deadline, which the rows of one job may be expected to take together
EARLY_S = 1.0  # a verifier that may take longer is called while other samples are still generated
CALLED_WITH = "a function is called with prompts, completions, prompt_ids, completion_ids, finished"
LearnedReward = Callable[[list[list[int]], list[list[int]]], list[float]]


class Part(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        """Start scoring; the returned function waits for the outcomes, one per row, in order."""
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a verifier for some rows of the batch."""

    rows: list[int]
    verifier: Verifier
    job: Job


@dataclass(frozen=True, slots=True)
class VerifierPart:
    """The score of a verifier. `task`: constant fields; `fields`: verifier field -> name of the column in the row."""

    name: str
    weight: float
    verifier_of: Callable[[Mapping[str, Any]], Verifier | None]
    timeout_s: float
    task: Mapping[str, Any]
    fields: Mapping[str, str]
    pace: dict[str, float] = field(default_factory=dict)  # verifier -> seconds per row in the last batch

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        grading = Grading(self, pool)
        for i, (completion, task) in enumerate(zip(batch.completions, batch.tasks, strict=True)):
            grading.add(i, completion, task)
        return grading.submitted()

    def pays_early(self, task: Mapping[str, Any]) -> bool:
        """Whether the verifier of this row is slow enough to be called while other rows are still being sampled."""
        verifier = self.verifier_of(task)
        return verifier is not None and verifier.deadline_s > EARLY_S

    def task_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {field: row[column] for field, column in self.fields.items() if column in row}
        return {**row, **self.task, **renamed}


class Grading:
    """The verdicts of a verifier part on rows that may arrive one at a time, in any order."""

    def __init__(self, part: VerifierPart, pool: DeadlinePool) -> None:
        self.part, self._pool = part, pool
        self._rows: dict[int, tuple[str, Mapping[str, Any]]] = {}
        self._waiting: dict[str, tuple[Verifier, int, list[int]]] = {}  # with the rows of one job
        self._calls: list[_Call] = []

    def add(self, i: int, completion: str, task: Mapping[str, Any]) -> None:
        """Add row i; ignored if it was already added, because a sample that is drawn again is identical."""
        if i in self._rows:
            return
        self._rows[i] = (completion, task)
        verifier = self.part.verifier_of(task)
        if verifier is None:
            return
        known = self._waiting.get(verifier.name)
        if known is None:
            known = self._waiting[verifier.name] = (verifier, self._rows_per_job(verifier), [])
        _, rows_per_job, waiting = known
        waiting.append(i)
        if len(waiting) >= rows_per_job:
            self._submit(self._calls, verifier, list(waiting))
            waiting.clear()

    def _rows_per_job(self, verifier: Verifier) -> int:
        """One until the verifier's pace is known; then as many as surely end before the deadline of one row, because
        handing a row to a thread costs more than a quick verdict."""
        if verifier.grades_batches:
            return ROWS_PER_CALL
        pace = self.part.pace.get(verifier.name)
        return 1 if pace is None else max(1, min(MOST_ROWS, int(QUICK_SHARE * self.part.timeout_s / max(pace, 1e-6))))

    def submitted(self) -> Callable[[], list[Outcome]]:
        """Close the input; the returned function waits for the outcomes, in row order."""
        for verifier, _, waiting in self._waiting.values():
            if waiting:
                self._submit(self._calls, verifier, waiting)
        return self._finish

    def _submit(self, calls: list[_Call], verifier: Verifier, rows: list[int]) -> None:
        completions = [self._rows[i][0] for i in rows]
        tasks = [self.part.task_of(self._rows[i][1]) for i in rows]
        job = self._pool.submit(lambda: verifier.grade(completions, tasks), self.part.timeout_s)
        calls.append(_Call(rows, verifier, job))

    def _finish(self) -> list[Outcome]:
        self._pool.wait([call.job for call in self._calls])
        alone: list[_Call] = []
        for call in self._calls:
            if call.job.late and len(call.rows) > 1:
                for i in call.rows:  # a late batched call says nothing about its rows: retry each one alone
                    self._submit(alone, call.verifier, [i])
        self._pool.wait([call.job for call in alone])
        self._note_pace([*self._calls, *alone])
        verdicts: dict[int, Verdict] = {}
        for call in [*self._calls, *alone]:
            verdicts |= dict(zip(call.rows, self._verdicts(call.job, len(call.rows)), strict=True))
        for i in self._rows.keys() - verdicts.keys():
            verdicts[i] = broken(f"{self.part.name}: no verifier {self._rows[i][1].get('verifier')!r}")
        return [Outcome(v.score, v.status, v.detail) for _, v in sorted(verdicts.items())]

    def _note_pace(self, calls: Sequence[_Call]) -> None:
        spent: dict[str, list[tuple[float, int]]] = {}
        for call in calls:
            seconds = call.job.timeout_s if call.job.late else call.job.seconds
            spent.setdefault(call.verifier.name, []).append((seconds, len(call.rows)))
        for name, jobs in spent.items():
            self.part.pace[name] = sum(seconds for seconds, _ in jobs) / sum(rows for _, rows in jobs)

    def _verdicts(self, job: Job, n: int) -> Sequence[Verdict]:
        part = self.part
        if job.late:
            return [broken(f"{part.name}: no verdict within {part.timeout_s:g} s")] * n
        if job.exception is not None:
            return [broken(f"{part.name} raised {type(job.exception).__name__}: {job.exception}")] * n
        return job.result


@dataclass(frozen=True, slots=True)
class FunctionPart:
    """A function with TRL's signature. If the call for the whole batch fails, it is called again for each row."""

    name: str
    weight: float
    function: RewardFunction
    timeout_s: float

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        job = pool.submit(lambda: self._call(batch), self.timeout_s)
        return lambda: self._finish(batch, job, pool)

    def _finish(self, batch: Batch, job: Job, pool: DeadlinePool) -> list[Outcome]:
        pool.wait([job])
        if not job.late and job.exception is None:
            return [_outcome(value) for value in job.result]
        if len(batch) == 1:
            why = f"late, over {self.timeout_s:g} s" if job.late else f"{type(job.exception).__name__}: {job.exception}"
            return [Outcome(None, None, hidden(f"{self.name}: {why}"))]
        rows = [batch.row(i) for i in range(len(batch))]
        return [finish()[0] for finish in [self.start(row, pool) for row in rows]]

    def _call(self, batch: Batch) -> list[float | None]:
        return _numbers(self._values(batch), len(batch))

    def _values(self, batch: Batch) -> Any:
        values = self.function(**_arguments(self.function, batch))
        return asyncio.run(values) if inspect.iscoroutine(values) else values

    def try_out(self, row: Batch, pool: DeadlinePool) -> str | None:
        """What the function raises for one row, where other rows may have a score; None if it returns a score.

        Raises ValueError for what it would do with every row: it needs a column that the rows lack, returns no list of
        numbers, or does not return.
        """
        if missing := _missing_arguments(self.function, row):
            raise ValueError(f"{self.name}: needs a column {missing[0]!r}; {CALLED_WITH}, and the fields of the task: "
                             f"{', '.join(row.tasks[0]) or 'none'}")  # fmt: skip
        job = pool.submit(lambda: self._values(row), self.timeout_s)
        pool.wait([job])
        if job.late:
            raise ValueError(f"{self.name}: no reward within {self.timeout_s:g} s for one row; see its timeout_s")
        if job.exception is not None:
            return hidden(f"{type(job.exception).__name__}: {job.exception}")
        try:
            _numbers(job.result, len(row))
        except ValueError as exc:
            raise ValueError(f"{self.name}: {exc}") from None
        return None


@dataclass(frozen=True, slots=True)
class LearnedPart:
    """A reward model over token ids, including the EOS. Runs in the caller's thread and does not catch errors: it is
    trusted code, and torch in a second thread slows down the first."""

    name: str
    weight: float
    model: LearnedReward

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        return lambda: self._finish(batch)

    def _finish(self, batch: Batch) -> list[Outcome]:
        values = self.model([list(ids) for ids in batch.prompt_ids], [list(ids) for ids in batch.completion_ids])
        if len(values) != len(batch):
            raise ValueError(f"rewards.{self.name}: the model returned {len(values)} scores for {len(batch)} rows")
        return [_outcome(value) for value in values]


@dataclass(frozen=True, slots=True)
class PotentialPart:
    """Step rewards from a potential; they assign credit to steps and do not change the reward of the sample.

    potential(prompt, completion, completion_ids, task) -> [(index of the step's last token, Φ before the step), ...]
    """

    name: str
    weight: float
    potential: Callable[..., Sequence[tuple[int, float]]]
    gamma: float
    timeout_s: float

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        jobs = [pool.submit(lambda i=i: self._steps(batch, i), self.timeout_s) for i in range(len(batch))]  # type: ignore[misc]
        return lambda: self._finish(jobs, pool)

    def _finish(self, jobs: list[Job], pool: DeadlinePool) -> list[Outcome]:
        pool.wait(jobs)
        outcomes = []
        for job in jobs:
            if job.late or job.exception is not None:
                why = "late" if job.late else f"{type(job.exception).__name__}: {job.exception}"
                outcomes.append(Outcome(None, None, hidden(f"{self.name}: {why}")))
            else:
                outcomes.append(Outcome(0.0, None, "", job.result))
        return outcomes

    def _steps(self, batch: Batch, i: int) -> tuple[tuple[int, float], ...]:
        ids = batch.completion_ids[i]
        steps = list(self.potential(batch.prompts[i], batch.completions[i], ids, batch.tasks[i]))
        positions = [end for end, _ in steps]
        if positions != sorted(set(positions)) or any(not 0 <= end < len(ids) for end in positions):
            raise ValueError(f"step ends {positions} must rise within the {len(ids)} tokens")
        shaped = potential_differences([float(phi) for _, phi in steps], gamma=self.gamma)
        if not all(map(math.isfinite, shaped)):
            raise ValueError("a potential is not finite")
        return tuple((end, self.weight * reward) for end, reward in zip(positions, shaped, strict=True))


def _numbers(values: Any, n: int) -> list[float | None]:
    """A function's rewards. Raises ValueError unless it is one number or None per row."""
    wanted = "return a list with one number (or None) per completion"
    shown = repr(values)[:80]
    try:
        rewards = [None if reward is None else float(reward) for reward in values]
    except (TypeError, ValueError):
        raise ValueError(f"returned {shown}; {wanted}") from None
    if len(rewards) != n or isinstance(values, str):
        raise ValueError(f"returned {shown}, {len(rewards)} rewards for {n} rows; {wanted}")
    return rewards


def _outcome(value: Any) -> Outcome:
    if value is None:
        return Outcome(None, None, "not scorable")
    number = float(value)
    return Outcome(number) if math.isfinite(number) else Outcome(None, None, f"the reward is {number}")


def _arguments(function: RewardFunction, batch: Batch) -> dict[str, Any]:
    """The keyword arguments that TRL would pass: prompts, completions, completion_ids, each task field as a column."""
    columns = {key: [task.get(key) for task in batch.tasks] for key in {k for task in batch.tasks for k in task}}
    arguments = {
        "prompt_ids": list(batch.prompt_ids),
        **columns,
        "prompts": list(batch.prompts),
        "completions": list(batch.completions),
        "completion_ids": list(batch.completion_ids),
    }
    if batch.finished is not None:
        arguments["finished"] = list(batch.finished)
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return arguments
    wanted = {p.name for p in parameters}
    return {key: value for key, value in arguments.items() if key in wanted}


def _missing_arguments(function: RewardFunction, row: Batch) -> list[str]:
    """The parameters without a default that no column of this row fills."""
    given = _arguments(function, row)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind not in variadic and p.name not in given]  # fmt: skip
