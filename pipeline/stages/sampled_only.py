"""dpo and kto on episodes with tools: TRL's loss on what the policy sampled, and not on what tools answered.

TRL's collators take a completion as one list of ids and set its whole `completion_mask`, from which the trainers
compute every log-prob (trl 1.16, DPOTrainer and KTOTrainer). Here flags travel beside the ids, and the mask of a batch
is restricted to them. An episode of several rows has no single completion, and is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, tensor

from pipeline.records import Scored, episodes

Ids = tuple[int, ...]
Flags = Mapping[Ids, tuple[bool, ...]]  # completion -> per id, whether it was sampled
# column of flags -> the column of ids that they are about
FLAGS_OF = {
    "chosen_sampled": "chosen_ids",
    "rejected_sampled": "rejected_ids",
    "completion_sampled": "completion_ids",
    "KL_completion_sampled": "KL_completion_ids",
}
# a mask of TRL's batch -> the columns of flags of its rows, in order
COLUMNS_OF = {
    "completion_mask": ("chosen_sampled", "rejected_sampled", "completion_sampled"),
    "KL_completion_mask": ("KL_completion_sampled",),
}


def single_rows(scored: Sequence[Scored]) -> tuple[list[Scored], int]:
    """The completions and episodes that are one row, and the number of episodes that are several."""
    samples = episodes(scored)
    alone = [rows[0] for rows in samples if len(rows) == 1]
    return alone, len(samples) - len(alone)


def flags_of(scored: Sequence[Scored]) -> Flags:
    """Flags of the completions that hold more than what was sampled; {} for plain completions."""
    return {s.rollout.ids: s.rollout.sampled for s in scored if s.rollout.sampled is not None}


def with_flags(rows: Sequence[Mapping[str, Any]], flags: Flags) -> list[dict[str, Any]]:
    """Rows of ids with a column of flags for each completion; unchanged without flags."""
    if not flags:
        return [dict(row) for row in rows]
    return [{**row, **{column: list(flags.get(tuple(row[ids]), (True,) * len(row[ids])))
                       for column, ids in FLAGS_OF.items() if ids in row}} for row in rows]  # fmt: skip


class SampledOnly:
    """A collator of TRL whose masks are restricted to the flags of its rows."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collate(rows)
        for mask, columns in COLUMNS_OF.items():
            flagged = [(row, column) for column in columns if column in rows[0] for row in rows]
            for number, (row, column) in enumerate(flagged):
                start, sampled = len(row["prompt_ids"]), tensor(row[column])
                batch[mask][number, start : start + len(sampled)] *= sampled
        return batch


__all__ = ["FLAGS_OF", "SampledOnly", "flags_of", "single_rows", "with_flags"]
