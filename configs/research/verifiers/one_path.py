"""The grid task with one demonstrated answer per prompt: a shortest path, drawn by the prompt itself.

`gold` is that answer, for the verifier `exact`; any other path that arrives is right to `gridworld` and wrong here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Any, TypedDict

from verifiers import Example, Verdict, exact, gridworld


class Task(TypedDict):
    gold: str  # the demonstrated path


def demonstration(start: str, goal: str) -> str:
    """One of the shortest paths; which one is a function of start and goal alone."""
    rng, here, path = random.Random(f"{start}>{goal}"), start, ""
    away = gridworld.distances_from(goal)
    while here != goal:
        closer = [m for m in gridworld.MOVES if (c := gridworld.step(here, m)) is not None and away[c] < away[here]]
        move = rng.choice(closer)
        path += move
        here = gridworld.step(here, move) or here
    return path


def verify(completion: str, task: Task) -> Verdict:
    """Passes for the demonstrated path and no other."""
    return exact.verify(completion, {"gold": task["gold"]})


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}, over all pairs of different cells."""
    pairs = [(a, b) for a, b in product(gridworld.CELLS, repeat=2) if a != b]
    rng = random.Random(seed)
    while n > 0:
        for start, goal in rng.sample(pairs, min(n, len(pairs))):
            path = demonstration(start, goal)
            task = {"start": start, "goal": goal, "gold": path}
            yield {"prompt": gridworld.prompt(start, goal), "completion": path, "task": task}
        n -= len(pairs)


_TASK = {"gold": "RR"}
EXAMPLES = (
    Example("right", "RR", _TASK, 1.0),
    Example("wrong", "R", _TASK),
    Example("wrong", "URDR", _TASK),
    Example("malformed", "", _TASK),
    Example("hostile", "RR\x00", _TASK),
)
