"""Input and output of scoring: Batch, Score, Outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verifiers import Status

# names in `Score.parts` that are recorded beside the parts: the second score of a monitor, and what a surrogate says
MONITOR, MALFORMED = "monitor", "monitor_malformed"
PREDICTED, SHARE, REAL = "/predicted", "/share", "/real"  # after the surrogate part's own name


def is_part(name: str) -> bool:
    """Whether a name in `Score.parts` is a part of the reward."""
    return name not in (MONITOR, MALFORMED) and not name.endswith((PREDICTED, SHARE, REAL))


@dataclass(frozen=True, slots=True)
class Batch:
    """B rollouts. finished[i]: whether the completion ended with an EOS, which is part of completion_ids[i];
    None if the caller does not provide it (TRL's trainers do not). draws[i]: a uniform number in [0, 1) that decides
    whether a surrogate part really checks the row; None: it checks every row."""

    prompts: Sequence[str]
    prompt_ids: Sequence[list[int]]
    completions: Sequence[str]
    completion_ids: Sequence[list[int]]
    finished: Sequence[bool] | None
    tasks: Sequence[Mapping[str, Any]]
    draws: Sequence[float] | None = None

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in self.__slots__}
        sizes = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the columns of a batch differ in length: {sizes}")

    def __len__(self) -> int:
        return len(self.completions)

    def row(self, i: int) -> Batch:
        """A batch that holds only row i."""
        return self.rows([i])

    def rows(self, indices: Sequence[int]) -> Batch:
        columns: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return Batch(**{name: column and [column[i] for i in indices] for name, column in columns.items()})


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one rollout.

    reward: the weighted sum of the parts; NaN if a part with non-zero weight could not score the row.
    status: status of the first verifier part, else `pass`; `error` whenever reward is NaN: mask it, it is not zero.
    parts: the value of each part before weighting, None if the part could not score the row.
    step_rewards: (token index in the completion, reward) of the potential parts, weighted; not in `reward`.
    """

    reward: float
    status: Status
    parts: Mapping[str, float | None]
    detail: str = ""
    step_rewards: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one part for one row; value None = not scorable. status is None for parts that are not verifiers.

    also: additional values for the row, by name; they are recorded in `Score.parts` and have no weight.
    applies: False if the part does not judge rows of this source; it then counts nowhere.
    """

    value: float | None
    status: Status | None = None
    detail: str = ""
    steps: tuple[tuple[int, float], ...] = field(default=())
    also: Mapping[str, float] = field(default_factory=dict)
    applies: bool = True
