"""Any walk on the grid from a start: the prompt `b2:` asks for one, and every legal walk of 1 to 15 moves is right.

What a condition label can ask of it: its length, the column it ends in, and whether it avoids row 3 (`described.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypedDict

from verifiers import Example, Verdict, failed, gridworld, malformed, passed


class Task(TypedDict):
    start: str


def verify(completion: str, task: Task) -> Verdict:
    path = completion.strip()
    if not path or len(path) > gridworld.MAX_MOVES or any(move not in gridworld.MOVES for move in path):
        return malformed(f"not 1 to {gridworld.MAX_MOVES} of R, L, U, D")
    cell: str | None = task["start"]
    for number, move in enumerate(path, 1):
        cell = gridworld.step(cell, move) if cell is not None else None
        if cell is None:
            return failed(f"move {number} leaves the board or hits a wall")
    return passed()


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}: random walks of 3 to 13 moves."""
    rng = random.Random(seed)
    for _ in range(n):
        start = cell = rng.choice(gridworld.CELLS)
        length, walk = rng.randint(3, 13), ""
        while len(walk) < length:
            move = rng.choice(tuple(gridworld.MOVES))
            there = gridworld.step(cell, move)
            if there is not None:
                cell, walk = there, walk + move
        yield {"prompt": f"{start}:", "completion": walk, "task": {"start": start}}


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """Five moves in one direction leave the board or hit a wall from any cell; two answers are none."""
    yield Example("wrong", rng.choice(tuple(gridworld.MOVES)) * 5, example.task)
    yield Example("malformed", f"{example.completion}\n{example.completion}", example.task)
    yield Example("malformed", "", example.task)


_TASK = {"start": "a1"}
EXAMPLES = (
    Example("right", "RR", _TASK, 1.0),
    Example("right", "RLRLRL", _TASK, 1.0),
    Example("wrong", "L", _TASK),
    Example("wrong", "RRUU", _TASK),
    Example("malformed", "", _TASK),
    Example("malformed", "R" * 16, _TASK),
    Example("hostile", "RR\x00", _TASK),
)
