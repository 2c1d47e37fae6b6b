"""Walk a grid by text: the prompt `a1>d4:` asks for a path, and `RRUUU` is one.

A 5 x 5 board, columns a-e, rows 1-5, with walls. The path is executed, so every way that arrives counts:
the score is 1 for a shortest path and falls by an eighth per wasted step to no less than a quarter; a path that does
not arrive, leaves the board or hits a wall scores 0. The five levels are what condition tokens can ask for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

COLUMNS, ROWS = "abcde", "12345"
WALLS = frozenset({"c3", "b4", "d2"})
MOVES = {"R": (1, 0), "L": (-1, 0), "U": (0, 1), "D": (0, -1)}
MAX_MOVES = 15  # the longest answer that is read; the longest shortest path is 8
CELLS = tuple(c + r for c in COLUMNS for r in ROWS if c + r not in WALLS)


class Task(TypedDict):
    start: str
    goal: str


def step(cell: str, move: str) -> str | None:
    """The cell one move away, or None off the board or in a wall."""
    dx, dy = MOVES[move]
    x, y = COLUMNS.index(cell[0]) + dx, ROWS.index(cell[1]) + dy
    if not (0 <= x < len(COLUMNS) and 0 <= y < len(ROWS)):
        return None
    there = COLUMNS[x] + ROWS[y]
    return None if there in WALLS else there


@cache
def distances_from(start: str) -> dict[str, int]:
    """Shortest path length to every reachable cell, by breadth-first search."""
    distance, queue = {start: 0}, deque([start])
    while queue:
        here = queue.popleft()
        for move in MOVES:
            there = step(here, move)
            if there is not None and there not in distance:
                distance[there] = distance[here] + 1
                queue.append(there)
    return distance


def verify(completion: str, task: Task) -> Verdict:
    path = completion.strip()
    if not path or len(path) > MAX_MOVES or any(move not in MOVES for move in path):
        return malformed(f"not 1 to {MAX_MOVES} of R, L, U, D")
    cell: str | None = task["start"]
    for i, move in enumerate(path):
        assert cell is not None
        cell = step(cell, move)
        if cell is None:
            return failed(f"move {i + 1} leaves the board or hits a wall")
    if cell != task["goal"]:
        return failed(f"ends at {cell}, not {task['goal']}")
    detour = len(path) - distances_from(task["start"])[task["goal"]]
    return passed(f"{detour} steps longer than the shortest", score=max(0.25, 1.0 - 0.125 * detour))


def prompt(start: str, goal: str) -> str:
    return f"{start}>{goal}:"


class Environment:
    """The same task in several turns: each turn walks a part of the way, and the prompt names the new position.

    The board stops a turn at its first move that leaves it or hits a wall. Arriving pays what `verify` would give to
    the moves of all turns together.
    """

    def reset(self, task: Task) -> str:
        self.start = self.cell = task["start"]
        self.goal, self.moves = task["goal"], 0
        return prompt(self.cell, self.goal)

    def step(self, action: str) -> tuple[str, float, bool]:
        """(next prompt, reward, done); an answer that is no path ends the episode."""
        path = action.strip()
        if not path or len(path) > MAX_MOVES or any(move not in MOVES for move in path):
            return "", 0.0, True
        for move in path:
            there = step(self.cell, move)
            self.moves += 1
            if there is None:
                break
            self.cell = there
        if self.cell != self.goal:
            return prompt(self.cell, self.goal), 0.0, False
        detour = self.moves - distances_from(self.start)[self.goal]
        return prompt(self.cell, self.goal), max(0.25, 1.0 - 0.125 * detour), True


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}: random walks, each labelled with the cell it ends on.

    As demonstrations they reach their goal, though seldom by the shortest path.
    """
    rng = random.Random(seed)
    count = 0
    while count < n:
        start = cell = rng.choice(CELLS)
        length = rng.randint(1, 10)
        walk = ""
        while len(walk) < length:
            move = rng.choice(tuple(MOVES))
            there = step(cell, move)
            if there is not None:
                cell, walk = there, walk + move
        if cell == start:
            continue
        count += 1
        yield {"prompt": prompt(start, cell), "completion": walk, "task": {"start": start, "goal": cell}}


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """One move too few or too many never ends on the goal; a step back and forth does."""
    path, back = example.completion, {"R": "L", "L": "R", "U": "D", "D": "U"}
    yield Example("wrong", path[:-1], example.task) if len(path) > 1 else Example("malformed", "", example.task)
    for move in MOVES:
        yield Example("wrong", path + move, example.task)
    yield Example("malformed", f"{path}\n{path}", example.task)
    if len(path) + 2 <= MAX_MOVES:
        yield Example("right", path + back[path[-1]] + path[-1], example.task)


_TASK = {"start": "a1", "goal": "c1"}
EXAMPLES = (
    Example("right", "RR", _TASK, 1.0),
    Example("right", "RRLR", _TASK, 0.75),
    Example("right", "URDR", _TASK, 0.75),
    Example("wrong", "R", _TASK),
    Example("wrong", "RRR", _TASK),
    Example("wrong", "LRRR", _TASK),
    Example("malformed", "", _TASK),
    Example("malformed", "go right twice", _TASK),
    Example("malformed", "R" * 1000, _TASK),
    Example("hostile", "RR\x00", _TASK),
    Example("hostile", "RR" * 7 + "LL" * 7, _TASK),
)
