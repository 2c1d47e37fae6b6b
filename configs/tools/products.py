"""Products of two-digit numbers: `37*58`, the answer is the number alone. A small model cannot compute them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

CALL_SHARE = 0.5  # of the demonstrations that ask the calculator; the others state the product at once


class Task(TypedDict):
    product: int


def verify(completion: str, task: Task) -> Verdict:
    answer = completion.strip()
    if not (answer.isascii() and answer.isdigit() and len(answer) <= 9):
        return malformed("not a number alone")
    return passed() if int(answer) == task["product"] else failed(f"{answer} is not the product")


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows; the completion of some is a conversation in which the calculator is asked."""
    rng = random.Random(seed)
    for _ in range(n):
        left, right = rng.randint(10, 99), rng.randint(10, 99)
        prompt, product = f"{left}*{right}", left * right
        completion: Any = str(product)
        if rng.random() < CALL_SHARE:
            call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": prompt}}}
            completion = [{"role": "assistant", "content": "", "tool_calls": [call]},
                          {"role": "tool", "name": "calculator", "content": str(product)},
                          {"role": "assistant", "content": str(product)}]  # fmt: skip
        yield {"prompt": prompt, "completion": completion, "task": {"product": product}}


_TASK = {"product": 2146}
EXAMPLES = (
    Example("right", "2146", _TASK),
    Example("right", " 2146\n", _TASK),
    Example("wrong", "2147", _TASK),
    Example("malformed", "37*58", _TASK),
    Example("malformed", "", _TASK),
    Example("hostile", "2146 2147", _TASK),
    Example("hostile", '[calculator(expression="37*58")]', _TASK),
)
