"""The verifier `gridworld`, after a wait of 0.2 s: a check that really is slow."""

from __future__ import annotations

import time

from verifiers import Verdict, gridworld
from verifiers.gridworld import EXAMPLES, Task, mutate

WAIT_S = 0.2


def verify(completion: str, task: Task) -> Verdict:
    time.sleep(WAIT_S)
    return gridworld.verify(completion, task)


__all__ = ["EXAMPLES", "Task", "mutate", "verify"]
