"""What goes into scoring and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verifiers import Status


@dataclass(frozen=True, slots=True)
class Batch:
    """B rollouts. finished[i]: the completion ended by itself, with an EOS that is part of completion_ids[i];
    None where nobody tells, as TRL's trainers do not."""

    prompts: Sequence[str]
    prompt_ids: Sequence[list[int]]
    completions: Sequence[str]
    completion_ids: Sequence[list[int]]
    finished: Sequence[bool] | None
    tasks: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in self.__slots__}
        sizes = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the columns of a batch differ in length: {sizes}")

    def __len__(self) -> int:
        return len(self.completions)

    def row(self, i: int) -> Batch:
        """The batch of row i alone."""
        return self.rows([i])

    def rows(self, places: Sequence[int]) -> Batch:
        columns: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return Batch(**{name: column and [column[i] for i in places] for name, column in columns.items()})


@dataclass(frozen=True, slots=True)
class Score:
    """What one rollout earned.

    reward: the weighted sum of the parts; NaN when a part with weight could not score the row.
    status: of the first verifier part, else `pass`; `error` whenever reward is NaN: mask it, it is not a zero.
    parts: each part's own value before its weight, None where it could not score.
    step_rewards: (token index in the completion, reward) of the potential parts, weighted; not in `reward`.
    """

    reward: float
    status: Status
    parts: Mapping[str, float | None]
    detail: str = ""
    step_rewards: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One part's say on one row; value None = not scorable. status is None for parts that are not verifiers.

    also: further figures of the row, by name; they stand in `Score.parts` and weigh nothing.
    """

    value: float | None
    status: Status | None = None
    detail: str = ""
    steps: tuple[tuple[int, float], ...] = field(default=())
    also: Mapping[str, float] = field(default_factory=dict)
