"""The parts a composite is made of. A part turns a batch into one Outcome per row, through jobs with a deadline.

`start` hands the work to the pool and returns at once; `finish` collects it. A row that cannot be scored is
Outcome(None): it moves no other row and is never a zero.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.records import Batch, Outcome
from rewards.shaping import RewardFunction
from rewards.steps import potential_differences
from verifiers import Verdict, Verifier, broken
from verifiers.deadline import DeadlinePool, Job

ROWS_PER_CALL = 16  # of a verifier that grades many in one call
LearnedReward = Callable[[list[list[int]], list[list[int]]], list[float]]


class Part(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        """Begin scoring; the returned function waits for the outcomes, one per row, in order."""
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a verifier, for these rows of the batch."""

    rows: list[int]
    verifier: Verifier
    job: Job


@dataclass(frozen=True, slots=True)
class VerifierPart:
    """A verifier's score. `task` holds constant fields, `fields` maps a verifier's field to the row's own name."""

    name: str
    weight: float
    verifier_of: Callable[[Mapping[str, Any]], Verifier | None]
    timeout_s: float
    task: Mapping[str, Any]
    fields: Mapping[str, str]

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        calls: list[_Call] = []
        for verifier, rows in self._by_verifier(batch).values():
            size = ROWS_PER_CALL if verifier.grades_batches else 1
            for chunk in (rows[i : i + size] for i in range(0, len(rows), size)):
                calls.append(self._call(batch, chunk, verifier, pool))
        return lambda: self._finish(batch, calls, pool)

    def _by_verifier(self, batch: Batch) -> dict[str, tuple[Verifier, list[int]]]:
        groups: dict[str, tuple[Verifier, list[int]]] = {}
        for i, task in enumerate(batch.tasks):
            verifier = self.verifier_of(task)
            if verifier is None:
                continue
            groups.setdefault(verifier.name, (verifier, []))[1].append(i)
        return groups

    def _call(self, batch: Batch, rows: list[int], verifier: Verifier, pool: DeadlinePool) -> _Call:
        completions = [batch.completions[i] for i in rows]
        tasks = [self._task(batch.tasks[i]) for i in rows]
        return _Call(rows, verifier, pool.submit(lambda: verifier.grade(completions, tasks), self.timeout_s))

    def _task(self, row: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {field: row[column] for field, column in self.fields.items() if column in row}
        return {**row, **self.task, **renamed}

    def _finish(self, batch: Batch, calls: list[_Call], pool: DeadlinePool) -> list[Outcome]:
        pool.wait([call.job for call in calls])
        late = [(i, call) for call in calls if call.job.late and len(call.rows) > 1 for i in call.rows]
        # a call for many that is late says nothing of its rows: each gets its own deadline
        alone = [self._call(batch, [i], call.verifier, pool) for i, call in late]
        pool.wait([call.job for call in alone])
        verdicts = [broken(f"{self.name}: no verifier {task.get('verifier')!r}") for task in batch.tasks]
        for call in [*calls, *alone]:
            for i, verdict in zip(call.rows, self._verdicts(call.job, len(call.rows)), strict=True):
                verdicts[i] = verdict
        return [Outcome(v.score, v.status, v.detail) for v in verdicts]

    def _verdicts(self, job: Job, n: int) -> Sequence[Verdict]:
        if job.late:
            return [broken(f"{self.name}: no verdict within {self.timeout_s:g} s")] * n
        if job.exception is not None:
            return [broken(f"{self.name} raised {type(job.exception).__name__}: {job.exception}")] * n
        return job.result


@dataclass(frozen=True, slots=True)
class FunctionPart:
    """A function with TRL's signature. Where a call for all fails, each row is asked for alone."""

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
            return [Outcome(None, None, f"{self.name}: {why}")]
        rows = [batch.row(i) for i in range(len(batch))]
        return [finish()[0] for finish in [self.start(row, pool) for row in rows]]

    def _call(self, batch: Batch) -> list[Any]:
        values = self.function(**_arguments(self.function, batch))
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
        values = list(values)
        if len(values) != len(batch):
            raise ValueError(f"returned {len(values)} rewards for {len(batch)} rows")
        return values


@dataclass(frozen=True, slots=True)
class LearnedPart:
    """A reward model over token ids, EOS included. Runs in the caller's thread and lets its errors through: it is
    trusted code, and torch in a second thread starves the first."""

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
    """Step rewards from a potential; they are credit along the way and leave the sample's reward as it is.

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
                outcomes.append(Outcome(None, None, f"{self.name}: {why}"))
            else:
                outcomes.append(Outcome(0.0, None, "", job.result))
        return outcomes

    def _steps(self, batch: Batch, i: int) -> tuple[tuple[int, float], ...]:
        ids = batch.completion_ids[i]
        steps = list(self.potential(batch.prompts[i], batch.completions[i], ids, batch.tasks[i]))
        ends = [end for end, _ in steps]
        if ends != sorted(set(ends)) or any(not 0 <= end < len(ids) for end in ends):
            raise ValueError(f"step ends {ends} must rise within the {len(ids)} tokens")
        shaped = potential_differences([float(phi) for _, phi in steps], gamma=self.gamma)
        if not all(map(math.isfinite, shaped)):
            raise ValueError("a potential is not finite")
        return tuple((end, self.weight * reward) for end, reward in zip(ends, shaped, strict=True))


def _outcome(value: Any) -> Outcome:
    if value is None:
        return Outcome(None, None, "not scorable")
    number = float(value)
    return Outcome(number) if math.isfinite(number) else Outcome(None, None, f"the reward is {number}")


def _arguments(function: RewardFunction, batch: Batch) -> dict[str, Any]:
    """What TRL would pass: prompts, completions, completion_ids and each task field as a column."""
    columns = {key: [task.get(key) for task in batch.tasks] for key in {k for task in batch.tasks for k in task}}
    arguments = {
        "prompt_ids": list(batch.prompt_ids),
        "finished": list(batch.finished),
        **columns,
        "prompts": list(batch.prompts),
        "completions": list(batch.completions),
        "completion_ids": list(batch.completion_ids),
    }
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return arguments
    wanted = {p.name for p in parameters}
    return {key: value for key, value in arguments.items() if key in wanted}
