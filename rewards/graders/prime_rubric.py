"""The rewards of a Prime Intellect environment as a grader: its tasks' own reward functions on finished completions.

They run in the environment's own interpreter (verifiers/tools/_prime.py), each call in a process of its own. A row that
was read from the environment has its task with it; for any other row the task is made of the row's fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import verifiers
from rewards.graders.grader_part import Grade, GraderRow
from rewards.graders.hosted import HostFailed
from verifiers._bridge import BridgeFailed
from verifiers.tools._prime import PrimeEnvironment, task_fields


@dataclass(frozen=True)
class PrimeRubric:
    """timeout_s: wall time of one call, for all of its rows."""

    environment: PrimeEnvironment
    timeout_s: float

    def grade(self, rows: Sequence[GraderRow]) -> list[Grade]:
        """Raises HostFailed where the call as a whole fails."""
        given = [{"task": {"prompt": row.prompt, **task_fields(row.task)}, "prompt": row.prompt,
                  "completion": verifiers.after_thinking(row.completion).strip()} for row in rows]  # fmt: skip
        try:
            grades = self.environment.bridge().ask({"do": "score", "rows": given}, timeout_s=self.timeout_s)
        except BridgeFailed as exc:
            raise HostFailed(str(exc)) from None
        if not isinstance(grades, list):
            raise HostFailed(f"no list of grades: {str(grades)[:60]}")
        return [_grade(grade) for grade in grades]

    def unavailable(self) -> str | None:
        try:
            self.environment.bridge().ask({"do": "describe"}, timeout_s=self.timeout_s)
        except (BridgeFailed, ValueError) as exc:
            return str(exc)
        return None


def _grade(grade: Any) -> Grade:
    match grade:
        case [bool(), _]:
            pass
        case [int() | float() | None as value, str() as detail]:
            return Grade(None if value is None else float(value), detail)
    return Grade(None, f"the grade is {str(grade)[:60]}, not a number and a text")


def prime_rubric(where: str, environment: Mapping[str, Any] | None, timeout_s: float) -> PrimeRubric:
    """Raises ValueError naming the key."""
    known = tuple(PrimeEnvironment.__dataclass_fields__)
    given = dict(environment or {})
    for key in given:
        if key not in known:
            raise ValueError(f"{where}.environment: unknown key {key!r}; have: {', '.join(known)}")
    for key in ("python", "taskset"):
        if not isinstance(given.get(key), str) or not given[key]:
            raise ValueError(f"{where}.environment.{key}: missing; give {{python: .../bin/python, taskset: NAME}}")
    return PrimeRubric(PrimeEnvironment(**given), timeout_s)


__all__ = ["PrimeRubric", "prime_rubric"]
