"""Write letters of which half are R: the score is 1 where exactly half are, and falls to 0 where all or none are.

A model with random weights can learn it in a few steps, and what earns more at first, more of R, earns nothing in the
end: a stand-in that has only seen the first answers is wrong about the last ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

PASS_AT = 0.75


class Task(TypedDict):
    letter: str
    wait_s: NotRequired[float]  # seconds that a check takes; none unless given


def verify(completion: str, task: Task) -> Verdict:
    time.sleep(task.get("wait_s", 0.0))
    if len(completion) < 2:
        return malformed("fewer than two letters")
    share = completion.count(task["letter"]) / len(completion)
    score = 1 - abs(2 * share - 1)
    return (passed if score >= PASS_AT else failed)(f"{share:.0%} are {task['letter']}", score=score)


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}."""
    rng = random.Random(seed)
    for _ in range(n):
        prompt = "".join(rng.choice("abcde12345") for _ in range(4))
        yield {"prompt": f"{prompt}:", "completion": "RLRLRLRL", "task": {"letter": "R"}}


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """All of one letter."""
    yield Example("wrong", "R" * len(example.completion), example.task, 0.0)
    yield Example("wrong", "L" * len(example.completion), example.task, 0.0)


_TASK = {"letter": "R"}
EXAMPLES = (
    Example("right", "RLRL", _TASK, 1.0),
    Example("right", "RRRRRLLL", _TASK, 0.75),
    Example("wrong", "RRRR", _TASK, 0.0),
    Example("wrong", "RRRL", _TASK, 0.5),
    Example("malformed", "R", _TASK),
    Example("hostile", "L" * 100_000, _TASK),
)
