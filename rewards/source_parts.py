"""Parts that judge the rows of some sources alone: the key `sources` of a reward part.

A row's source is the field `source` of its task, which `prompts.sources` fills.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.batch import Batch, Outcome
from rewards.parts import Part
from verifiers.deadline import DeadlinePool

SOURCE = "source"
NOT_APPLICABLE = Outcome(None, applies=False)


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A part that judges only rows whose task names one of these sources; it counts nowhere in other rows."""

    inner: Part
    sources: frozenset[str]

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def weight(self) -> float:
        return self.inner.weight

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        indices = [i for i, task in enumerate(batch.tasks) if task.get(SOURCE) in self.sources]
        if not indices:
            return lambda: [NOT_APPLICABLE] * len(batch)
        finish = self.inner.start(batch.rows(indices), pool)

        def outcomes() -> list[Outcome]:
            out = [NOT_APPLICABLE] * len(batch)
            for index, outcome in zip(indices, finish(), strict=True):
                out[index] = outcome
            return out

        return outcomes


def parts_for(block: Mapping[str, Mapping[str, Any] | None], source: str | None) -> dict[str, dict[str, Any]]:
    """The parts of a `rewards:` block that judge rows of this source, without the key `sources`; None: all parts."""
    out = {name: dict(fields or {}) for name, fields in block.items()}
    return {
        name: {key: value for key, value in fields.items() if key != "sources"}
        for name, fields in out.items()
        if source is None or source in fields.get("sources", [source])
    }
