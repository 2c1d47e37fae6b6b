"""Reach a target from given numbers with + - * /: the expression is parsed and evaluated exactly, never executed.

The answer is in <answer>...</answer>, in a box, or on the last line, and may end in `= target`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed
from verifiers._math.text import final_answer

MAX_CHARS = 400
MAX_DEPTH = 30
_TOKEN = re.compile(r"\s*(?:(\d{1,9})|([-+*/()]))", re.ASCII)
_SIGNS = {
    "×": "*",
    "÷": "/",
    "−": "-",
    "·": "*",
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
    "\\left": "",
    "\\right": "",
}


class Task(TypedDict):
    numbers: list[int]
    target: int
    use_all: NotRequired[bool]  # default True: each number exactly once; False: at most once


class _Bad(ValueError):
    """Not an expression of the game."""


def evaluate(text: str) -> tuple[Fraction, Counter[int]]:
    """The exact value of an expression, and the numbers used. Raises _Bad; ZeroDivisionError is one too."""
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _Bad(f"the sign {text[at]!r}")
        tokens.append(found[1] or found[2])
        at = found.end()
    used: Counter[int] = Counter()
    value, rest = _sum(tokens, 0, used, 0)
    if rest != len(tokens):
        raise _Bad("the expression goes on after its end")
    return value, used


def _sum(tokens: list[str], at: int, used: Counter[int], depth: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at, used, depth)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, used, depth)
        value, at = (value + right if tokens[at] == "+" else value - right), after
    return value, at


def _product(tokens: list[str], at: int, used: Counter[int], depth: int) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at, used, depth)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _atom(tokens, at + 1, used, depth)
        if tokens[at] == "/" and right == 0:
            raise _Bad("a division by zero")
        value, at = (value * right if tokens[at] == "*" else value / right), after
    return value, at


def _atom(tokens: list[str], at: int, used: Counter[int], depth: int) -> tuple[Fraction, int]:
    if at >= len(tokens):
        raise _Bad("the expression ends early")
    if tokens[at] == "(":
        if depth >= MAX_DEPTH:
            raise _Bad("nested too deeply")
        value, after = _sum(tokens, at + 1, used, depth + 1)
        if after >= len(tokens) or tokens[after] != ")":
            raise _Bad("a bracket that does not close")
        return value, after + 1
    if not tokens[at].isdigit():
        raise _Bad(f"{tokens[at]!r} instead of a number")
    used[int(tokens[at])] += 1
    return Fraction(int(tokens[at])), at + 1


def verify(completion: str, task: Task) -> Verdict:
    numbers, target = Counter(int(n) for n in task["numbers"]), Fraction(int(task["target"]))
    answer = final_answer(completion, box_needed=False) or _last_line(completion)
    if not answer or len(answer) > MAX_CHARS:
        return malformed("no expression")
    for sign, plain in _SIGNS.items():
        answer = answer.replace(sign, plain)
    left, equals, right = answer.strip().strip("$").partition("=")
    if equals and right.strip().rstrip(".") != str(target):
        return failed("it states another value than the target")
    try:
        value, used = evaluate(left)
    except _Bad as exc:
        return malformed(str(exc))
    if used - numbers or (task.get("use_all", True) and numbers - used):
        return failed("it does not use the given numbers")
    return passed() if value == target else failed(f"it is {str(value)[:40]}")


def _last_line(completion: str) -> str | None:
    lines = after_thinking(completion).strip().splitlines()
    return lines[-1] if lines else None


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n puzzles with a solution: a random expression over 3 or 4 numbers whose steps are positive integers."""
    rng = random.Random(seed)
    count = 0
    while count < n:
        numbers = [rng.randint(1, 25) for _ in range(rng.choice((3, 4)))]
        texts, values = [str(x) for x in numbers], list(numbers)
        while len(values) > 1:
            i, j = rng.sample(range(len(values)), 2)
            operator, value = rng.choice([
                ("+", values[i] + values[j]),
                ("*", values[i] * values[j]),
                *([("-", values[i] - values[j])] if values[i] > values[j] else []),
                *([("/", values[i] // values[j])] if values[i] % values[j] == 0 else []),
            ])  # fmt: skip
            text = f"({texts[i]} {operator} {texts[j]})"
            for k in sorted((i, j), reverse=True):
                del texts[k], values[k]
            texts.append(text)
            values.append(value)
        if not 10 <= values[0] <= 200:
            continue
        count += 1
        prompt = f"Using the numbers {sorted(numbers)} each once, and + - * / and brackets, make {values[0]}."
        task = {"numbers": sorted(numbers), "target": values[0]}
        yield {"prompt": prompt, "completion": f"<answer>{texts[0][1:-1]}</answer>", "task": task}


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    task = example.task
    text = final_answer(example.completion, box_needed=False) or example.completion.splitlines()[-1]
    text = text.partition("=")[0].strip()
    yield Example("right", f"I try.\n({text})", task)
    yield Example("right", rf"\boxed{{{text} = {task['target']}}}", task)
    for wrong in (f"{text} + 1", f"{text} * 1", f"({text}) - 0", f"{text} = {task['target'] + 1}", f"{task['target']}"):
        yield Example("wrong", f"<answer>{wrong}</answer>", task)
    yield Example("wrong", f"<answer>{''.join(map(str, task['numbers']))} = {task['target']}</answer>", task)
    yield Example("malformed", f"<answer>{text} {rng.choice('+-*/(')}</answer>", task)


_24 = {"numbers": [4, 4, 10, 10], "target": 24}
EXAMPLES = (
    Example("right", "<answer>(10 * 10 - 4) / 4</answer>", _24),
    Example("right", r"So $\boxed{(10 \times 10 - 4) \div 4 = 24}$", _24),
    Example("right", "<think>10 + 10 + 4 is one short way</think>\n(10*10-4)/4", _24),
    Example("right", "10+10+4", _24 | {"use_all": False}),
    Example("wrong", "<answer>10 + 10 + 4</answer>", _24),
    Example("wrong", "<answer>10 * 10 - 4 / 4</answer>", _24),
    Example("wrong", "<answer>4 * 4 + 8</answer>", _24),
    Example("malformed", "<answer></answer>", _24),
    Example("malformed", "<answer>10 10 4 4</answer>", _24),
    Example("malformed", "<answer>10 / (4 - 4) + 10</answer>", _24),
    Example("hostile", "<answer>24</answer>", _24),
    Example("hostile", "<answer>= 24</answer>", _24),
    Example("hostile", "<answer>10 * 10 - 4 = 24</answer>", _24),
    Example("hostile", "<answer>(10 * 10 - 4) / 4 + 0 * 7</answer>", _24),
    Example("hostile", "<answer>10 ** 10 ** 10 - 4 - 4</answer>", _24),
    Example("hostile", "<answer>-(4) + 4 + 10 + 10 + 4</answer>", _24),
    Example("hostile", "<answer>int('24')</answer>", _24),
    Example("hostile", "<answer>４ * 4 + 10 - 10</answer>", _24),
    Example("hostile", "<answer>" + "(" * 200 + "24" + ")" * 180 + "</answer>", _24),
)
