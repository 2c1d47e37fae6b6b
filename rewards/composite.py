"""What scores a batch: a weighted sum of parts, started in the background, or row by row while sampling continues."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import verifiers
from rewards import shaping
from rewards.batch import MALFORMED, MONITOR, Batch, Outcome, Score
from rewards.learned import prompt_ids_of
from rewards.parts import FunctionPart, Grading, LearnedPart, Part, VerifierPart
from rewards.source_parts import SourcePart
from rewards.surrogate import SurrogatePart
from verifiers.deadline import DeadlinePool


class Pending:
    """A batch that is being scored."""

    def __init__(self, finishers: Sequence[Callable[[], list[Outcome]]], parts: Sequence[Part], n: int) -> None:
        self._finishers, self._parts, self._n = finishers, parts, n

    def result(self) -> list[Score]:
        """Return one Score per row, in order. Waits at most until the deadline of each row."""
        columns = [finish() for finish in self._finishers]
        return [_score(self._parts, [column[i] for column in columns]) for i in range(self._n)]


class Stream:
    """A batch of n rows whose scoring starts while it is still being sampled.

    Only slow verifiers are called early; functions and models still receive the whole batch at once.
    """

    def __init__(self, parts: Sequence[Part], pool: DeadlinePool) -> None:
        self._parts, self._pool = parts, pool
        self._gradings = {p.name: Grading(p, pool) for p in parts if isinstance(p, VerifierPart) and p.weight}

    def add(self, i: int, completion: str, task: Mapping[str, Any]) -> None:
        """Add row i, which has been sampled."""
        for grading in self._early(task):
            grading.add(i, completion, task)

    def pays_early(self, task: Mapping[str, Any]) -> bool:
        """Whether any verifier for such a row is worth calling before the batch is complete."""
        return bool(self._early(task))

    def _early(self, task: Mapping[str, Any]) -> list[Grading]:
        return [grading for grading in self._gradings.values() if grading.part.pays_early(task)]

    def finish(self, batch: Batch) -> Pending:
        """Submit the complete batch; the rows that were added must match it."""
        finishers = []
        for part in self._parts:
            grading = self._gradings.get(part.name)
            if grading is None:
                finishers.append(part.start(batch, self._pool))
                continue
            for i, (completion, task) in enumerate(zip(batch.completions, batch.tasks, strict=True)):
                grading.add(i, completion, task)
            finishers.append(grading.submitted())
        return Pending(finishers, self._parts, len(batch))


class SecondLook:
    """Scores from other parts for a subset of rows, evenly spaced over the batch. They have no weight; a row that is
    not selected, or that could not be scored, has no value."""

    name = MONITOR
    weight = 0.0

    def __init__(self, parts: Sequence[Part], samples: int) -> None:
        self._parts, self._samples = parts, samples

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        count = min(self._samples, len(batch))
        indices = [i * len(batch) // count for i in range(count)]
        sample = batch.rows(indices)
        pending = Pending([part.start(sample, pool) for part in self._parts], self._parts, count)
        return lambda: self._finish(pending, indices, len(batch))

    def _finish(self, pending: Pending, indices: Sequence[int], n: int) -> list[Outcome]:
        out = [Outcome(None)] * n
        for index, score in zip(indices, pending.result(), strict=True):
            value = None if math.isnan(score.reward) else score.reward
            out[index] = Outcome(value, also={MALFORMED: float(score.status == "malformed")})
        return out


class Composite:
    """A weighted sum of parts. Call it like a TRL reward function, or give it a Batch."""

    __name__ = "rewards"

    def __init__(self, parts: Sequence[Part], *, judges: bool, max_threads: int = 16, tokenizer: Any = None) -> None:
        """judges: whether a part says right or wrong. Without one every scored row has status `pass`, and a figure of
        accuracy means nothing."""
        self.parts, self.judges = tuple(parts), judges
        self._tokenizer = tokenizer
        self._pool = DeadlinePool(max_threads)

    def submit(self, batch: Batch) -> Pending:
        """Start scoring in the background, so that the next batch can be generated at the same time."""
        return Pending([part.start(batch, self._pool) for part in self.parts], self.parts, len(batch))

    def stream(self) -> Stream:
        """Score rows that arrive one by one; use `submit` for a complete batch."""
        return Stream(self.parts, self._pool)

    def score(self, batch: Batch) -> list[Score]:
        return self.submit(batch).result()

    def close(self) -> None:
        self._pool.close()

    def try_functions(self, names: Collection[str], task: Mapping[str, Any]) -> list[str]:
        """Call each of these function parts once with a made-up completion; returns a line for each that raises.

        Raises ValueError that names the part for what would go wrong in every row.
        """
        row = Batch(["2+2="], [[1]], ["The answer is 4."], [[1, 2]], [True], [task])
        parts = [part.inner if isinstance(part, SourcePart) else part for part in self.parts]
        tried = {part.name: part.try_out(row, self._pool)
                 for part in parts if isinstance(part, FunctionPart) and part.name in names}  # fmt: skip
        return [f"{name}: {raised}" for name, raised in tried.items() if raised is not None]

    def watched_by(self, strict: Composite, samples: int) -> Composite:
        """The same rewards, plus the scores of `strict` for up to `samples` rows of each batch."""
        return Composite([*self.parts, SecondLook(strict.parts, samples)], judges=self.judges)

    @property
    def verifier_weights(self) -> dict[str, float]:
        """Map the name of each verifier part to its weight."""
        parts = [part.inner if isinstance(part, SourcePart) else part for part in self.parts]
        return {part.name: part.weight for part in parts if isinstance(part, VerifierPart)}

    @property
    def surrogates(self) -> list[SurrogatePart]:
        """The parts that learn from what they check."""
        return [part for part in self.parts if isinstance(part, SurrogatePart)]

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        """Score with TRL's signature; a column with one value per row is a task field. None = not scorable.

        Raises ValueError if a learned part needs prompt ids that the caller does not provide.
        """
        n = len(completions)
        per_row = {k: v for k, v in columns.items() if isinstance(v, list | tuple) and len(v) == n}
        finished = per_row.pop("finished", None)
        prompt_ids = per_row.pop("prompt_ids", None) or self._prompt_ids(prompts)
        tasks = [{key: values[i] for key, values in per_row.items()} for i in range(n)]
        texts = [
            verifiers.with_opened_thinking(shaping.text_of(c), p) for p, c in zip(prompts, completions, strict=True)
        ]
        batch = Batch([shaping.text_of(p) for p in prompts], prompt_ids, texts, completion_ids, finished, tasks)
        return [None if math.isnan(score.reward) else score.reward for score in self.score(batch)]

    def _prompt_ids(self, prompts: Any) -> list[list[int]]:
        """Prompt ids; only a reward model reads them."""
        readers = [part.name for part in self.parts if isinstance(part, LearnedPart)]
        if not readers:
            return [[] for _ in prompts]
        if self._tokenizer is None:
            raise ValueError(f"rewards.{readers[0]}: a reward model reads token ids; give rewards.build(tokenizer=...)")
        return prompt_ids_of(prompts, self._tokenizer)


def _score(parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Score:
    """Weighted sum of the outcomes of one row. A part of weight 0 is only recorded and cannot make the sum NaN; it
    sets the status only if no weighted part does. The status is `error`, with a valid reward, if such a part is the
    only verifier and it failed."""
    values = {part.name: out.value for part, out in zip(parts, outcomes, strict=True)}
    values |= {name: value for out in outcomes for name, value in out.also.items()}
    parts = [part for part, out in zip(parts, outcomes, strict=True) if out.applies]
    outcomes = [out for out in outcomes if out.applies]
    if not parts:
        return Score(math.nan, "error", values, "no part of the rewards judges rows of this source")
    weighted = [(part, out) for part, out in zip(parts, outcomes, strict=True) if part.weight != 0.0]
    broken = [(part, out) for part, out in weighted if out.value is None]
    judges = [out for _, out in weighted] + [out for out in outcomes if out.value is not None] + list(outcomes)
    first = next((out for out in judges if out.status is not None), None)
    if broken:
        part, out = broken[0]
        return Score(math.nan, "error", values, out.detail or f"{part.name} could not score this row")
    reward = math.fsum(part.weight * out.value for part, out in weighted if out.value is not None)
    steps = tuple(sorted(step for _, out in weighted for step in out.steps))
    status = first.status if first is not None and first.status is not None else "pass"
    return Score(reward, status, values, first.detail if first is not None else "", steps)


__all__ = ["Composite", "Pending", "SecondLook", "Stream"]
