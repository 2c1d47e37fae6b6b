"""Attributes of a walk that a label can describe (`descriptions.yaml`), as reward parts of weight 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verifiers import gridworld


def cells_after(path: str, start: str) -> list[str]:
    """The cells a walk arrives at, up to the first move that is none or leaves the board."""
    cells, here = [], start
    for move in path.strip()[: gridworld.MAX_MOVES]:
        there = gridworld.step(here, move) if move in gridworld.MOVES else None
        if there is None:
            break
        here = there
        cells.append(here)
    return cells


def column(completions: Sequence[str], start: Sequence[str], **columns: Any) -> list[float | None]:
    """The column a walk ends in: 0 for a to 4 for e."""
    ends = [(cells_after(path, begin) or [begin])[-1] for path, begin in zip(completions, start, strict=True)]
    return [float(gridworld.COLUMNS.index(cell[0])) for cell in ends]


def row_three(completions: Sequence[str], start: Sequence[str], **columns: Any) -> list[float | None]:
    """1 if a walk enters row 3, 0 if it avoids it; where it starts does not count."""
    walks = [cells_after(path, begin) for path, begin in zip(completions, start, strict=True)]
    return [float(any(cell[1] == "3" for cell in cells)) for cells in walks]
