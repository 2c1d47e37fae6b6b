"""Ten lines of five letters: an answer is right if the named letter is the majority of every line.

Each row also has a `draft`, whose letters are the named one only with probability SHARE. A model that imitates drafts
passes about one answer in four, and what is left to learn is spread evenly over 60 tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

LETTERS = "RL"
LINES, WIDTH = 10, 5
SHARE = 0.72  # of the letters of a draft that are the named one


class Task(TypedDict):
    letter: str


def right_lines(completion: str, letter: str) -> list[bool] | None:
    """Per line, whether the letter is its majority; None if the answer does not have the form."""
    lines = completion.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if len(lines) != LINES or any(len(line) != WIDTH or set(line) - set(LETTERS) for line in lines):
        return None
    return [2 * line.count(letter) > WIDTH for line in lines]


def verify(completion: str, task: Task) -> Verdict:
    right = right_lines(completion, task["letter"])
    if right is None:
        return malformed(f"not {LINES} lines of {WIDTH} letters {' or '.join(LETTERS)}")
    detail = f"{sum(right)} of {LINES} lines have more {task['letter']}"
    return passed(detail) if all(right) else failed(detail)


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, draft, task}; a draft is right in about one row of four."""
    rng = random.Random(seed)
    for _ in range(n):
        letter = rng.choice(LETTERS)
        other = LETTERS[1 - LETTERS.index(letter)]
        lines = ("".join(letter if rng.random() < SHARE else other for _ in range(WIDTH)) for _ in range(LINES))
        name = "".join(rng.choice("abcde12345") for _ in range(4))
        yield {"prompt": f"{name}{letter}:", "completion": f"{letter * WIDTH}\n" * LINES,
               "draft": "".join(f"{line}\n" for line in lines), "task": {"letter": letter}}  # fmt: skip


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """One line with the other letter as its majority."""
    lines = example.completion.split("\n")
    lines[rng.randrange(LINES)] = LETTERS[1 - LETTERS.index(example.task["letter"])] * WIDTH
    yield Example("wrong", "\n".join(lines), example.task)


_TASK = {"letter": "R"}
EXAMPLES = (
    Example("right", "RRRRR\n" * 10, _TASK, 1.0),
    Example("right", "\n".join(["RRRLL"] * 10), _TASK, 1.0),
    Example("wrong", "RRRRR\n" * 9 + "LLLRR\n", _TASK),
    Example("wrong", "LLLLL\n" * 10, _TASK),
    Example("malformed", "RRRRR\n" * 9, _TASK),
    Example("malformed", "RRRR\n" * 10, _TASK),
    Example("hostile", "R" * 100_000, _TASK),
)
