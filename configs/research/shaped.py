"""Rewards for the grid task: the outcome alone, one potential, and three that a policy can exploit (`dense.yaml`).

Each function has TRL's reward signature; `start` and `goal` are columns of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from verifiers import gridworld

FAR = 8  # the longest shortest path on the board


def cells_of(path: str, start: str) -> list[str]:
    """The cells a path visits, from its start up to the first move that is none or leaves the board."""
    cells = [start]
    for move in path.strip()[: gridworld.MAX_MOVES]:
        there = gridworld.step(cells[-1], move) if move in gridworld.MOVES else None
        if there is None:
            break
        cells.append(there)
    return cells


def _each(value: Callable[[str, list[str], str], float]) -> Callable[..., list[float | None]]:
    """A reward function from one of (path, cells visited, goal)."""

    def reward(
        completions: Sequence[str], start: Sequence[str], goal: Sequence[str], **columns: Any
    ) -> list[float | None]:
        paths = [completion.strip() for completion in completions]
        rows = zip(paths, start, goal, strict=True)
        return [value(path, cells_of(path, begin), end) for path, begin, end in rows]

    return reward


def _arrives(path: str, cells: list[str], goal: str) -> float:
    return float(len(cells) == len(path) + 1 and cells[-1] == goal)


def _progress(path: str, cells: list[str], goal: str) -> float:
    """A quarter for each move that comes closer; moves away cost nothing, so going back and forth pays."""
    distance = [gridworld.distances_from(goal)[cell] for cell in cells]
    return 0.25 * sum(after < before for before, after in pairwise(distance))


def _visits(path: str, cells: list[str], goal: str) -> float:
    """A tenth for each new cell, wherever it lies: a tour pays more than arriving."""
    return 0.1 * (len(set(cells)) - 1)


def _brevity(path: str, cells: list[str], goal: str) -> float:
    """Up to 1 for a short answer, right or not."""
    return 1.0 - min(len(path), gridworld.MAX_MOVES) / gridworld.MAX_MOVES if path else 0.0


def _nearness(path: str, cells: list[str], goal: str) -> float:
    """1 minus the distance from where the path ends to the goal, in units of the longest; 0 for no path."""
    return 1.0 - gridworld.distances_from(goal)[cells[-1]] / FAR if len(cells) > 1 else 0.0


arrives, progress, visits, brevity, nearness = map(_each, (_arrives, _progress, _visits, _brevity, _nearness))


def potential(
    prompt: str, completion: str, completion_ids: Sequence[int], task: Mapping[str, Any]
) -> list[tuple[int, float]]:
    """Minus the distance to the goal, in units of the longest, before each token: one move is one token.

    Source: the distance heuristic of Ng, Harada and Russell 1999, §4.
    """
    cells = cells_of(completion, task["start"])
    last = len(cells) - 1
    return [
        (index, -gridworld.distances_from(task["goal"])[cells[min(index, last)]] / FAR)
        for index in range(len(completion_ids))
    ]
