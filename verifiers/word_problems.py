r"""Arithmetic word problems made procedurally: five kinds, with templates and numbers that are held out.

The kinds are adding, taking away, multiplying, sharing, and two steps (multiply, then add or take away). Answers are
whole numbers in a \boxed{}, compared as `math_answer` compares them; a task's `gold` serves either verifier.
`generate` makes training rows with a short worked demonstration each. `heldout` makes rows to judge on, which share
neither a template nor a pair of numbers with them:

    python -m verifiers.word_problems 600 > heldout.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

from verifiers import Example, Verdict, math_answer

DEADLINE_S = math_answer.DEADLINE_S
HELDOUT_PAIRS = 5  # one pair of numbers in so many is held out
NAMES = ("Ada", "Ben", "Carla", "Dario", "Ella", "Femi", "Gita", "Hugo", "Iris", "Jonas", "Kira", "Lars")
THINGS = ("apples", "books", "marbles", "stamps", "pencils", "shells", "cards", "cookies", "buttons", "coins")


class Task(TypedDict):
    gold: str


@dataclass(frozen=True, slots=True)
class Kind:
    """Templates to train on and to judge on, with {name}, {other}, {things}, {a}, {b}, {c}; low, high: of a and b."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    low: int
    high: int


KINDS: dict[str, Kind] = {
    "add": Kind(
        (
            "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
            "There are {a} {things} in one bag and {b} in another. How many {things} are there together?",
            "{name} found {a} {things} on Monday and {b} on Tuesday. How many {things} did {name} find?",
            "{name} owns {a} {things}, and {other} owns {b}. How many {things} do they own in all?",
        ),
        (
            "A shelf holds {a} {things}. {name} puts {b} more on it. How many {things} are on the shelf?",
            "After {name} got {b} {things} from {other}, to add to {a} at home, how many were there?",
        ),
        3, 60,
    ),
    "take": Kind(
        (
            "{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?",
            "A box holds {a} {things}. {name} takes out {b}. How many {things} stay in the box?",
            "{name} had {a} {things} but lost {b} of them. How many {things} are left?",
            "Of {a} {things}, {b} were sold. How many {things} were not sold?",
        ),
        (
            "{name} needs {a} {things} and already has {b}. How many more {things} does {name} need?",
            "{other} has {b} {things} and {name} has {a}. How many more {things} does {name} have than {other}?",
        ),
        3, 60,
    ),
    "multiply": Kind(
        (
            "{name} has {a} boxes with {b} {things} in each. How many {things} is that?",
            "Each of {a} children brings {b} {things}. How many {things} do they bring?",
            "{name} reads {b} pages a day. How many pages does {name} read in {a} days?",
            "A ticket costs {b} dollars. How many dollars do {a} tickets cost?",
        ),
        (
            "There are {a} rows of {b} chairs in a hall. How many chairs are in the hall?",
            "{name} earns {b} dollars an hour and works {a} hours. How many dollars does {name} earn?",
        ),
        2, 12,
    ),
    "share": Kind(
        (
            "{name} shares {c} {things} equally among {a} friends. How many {things} does each friend get?",
            "{c} {things} are packed into bags of {a}. How many bags are filled?",
            "{name} pays {c} dollars for {a} equal books. How many dollars does one book cost?",
            "{c} children form {a} teams of the same size. How many children are in a team?",
        ),
        (
            "A rope of {c} meters is cut into {a} equal pieces. How many meters long is a piece?",
            "{name} walks {c} kilometers in {a} days, as far every day. How many kilometers is that per day?",
        ),
        2, 12,
    ),
    "two steps": Kind(
        (
            "{name} buys {a} packs of {b} {things} and gives {c} to {other}. How many {things} does {name} keep?",
            "{a} tables have {b} seats each, and {c} seats are taken. How many seats are free?",
            "{name} saves {b} dollars a week for {a} weeks and then spends {c}. How many dollars are left?",
            "A baker makes {a} trays of {b} rolls and sells {c} rolls. How many rolls are left?",
        ),
        (
            "{name} plants {a} rows of {b} trees, but {c} trees die. How many trees are alive?",
            "A bus makes {a} trips with {b} people on each; {c} of all these are children. How many are adults?",
        ),
        2, 12,
    ),
}  # fmt: skip


def verify(completion: str, task: Task) -> Verdict:
    return math_answer.verify(completion, {"gold": task["gold"]})


def is_heldout(a: int, b: int) -> bool:
    return zlib.crc32(f"{a},{b}".encode()) % HELDOUT_PAIRS == 0


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task} to train on; kinds take turns."""
    return _rows(n, random.Random(seed), heldout=False)


def heldout(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of templates and pairs of numbers that `generate` never uses."""
    return _rows(n, random.Random(seed), heldout=True)


def _rows(n: int, rng: random.Random, *, heldout: bool) -> Iterator[dict[str, Any]]:
    for number in range(n):
        name = list(KINDS)[number % len(KINDS)]
        kind = KINDS[name]
        a, b = _numbers(kind, rng, heldout=heldout)
        if name == "take" and a < b:
            a, b = b, a
        c = a * b if name == "share" else rng.randint(1, a * b - 1)
        person, other = rng.sample(NAMES, 2)
        template = rng.choice(kind.heldout if heldout else kind.train)
        question = template.format(name=person, other=other, things=rng.choice(THINGS), a=a, b=b, c=c)
        working, answer = _solution(name, a, b, c)
        yield {
            "prompt": f"{question} Put the answer in \\boxed{{}}.",
            "completion": f"{working} \\boxed{{{answer}}}",
            "task": {"gold": str(answer)},
            "kind": name,
        }


def _numbers(kind: Kind, rng: random.Random, *, heldout: bool) -> tuple[int, int]:
    """A pair of the wanted side. A pair and its reverse lie on one side, for `take` may turn them round."""
    while True:
        a, b = rng.randint(kind.low, kind.high), rng.randint(kind.low, kind.high)
        if a != b and is_heldout(*sorted((a, b))) == heldout:
            return a, b


def _solution(name: str, a: int, b: int, c: int) -> tuple[str, int]:
    if name == "add":
        return f"{a} + {b} = {a + b}.", a + b
    if name == "take":
        return f"{a} - {b} = {a - b}.", a - b
    if name == "multiply":
        return f"{a} * {b} = {a * b}.", a * b
    if name == "share":
        return f"{c} / {a} = {b}.", b
    return f"{a} * {b} = {a * b}. {a * b} - {c} = {a * b - c}.", a * b - c


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """Another number is wrong, the box left open is malformed."""
    gold = int(example.task["gold"])
    for other in (gold + rng.randint(1, 9), -gold - 1):
        yield Example("wrong", f"\\boxed{{{other}}}", example.task)
    yield Example("malformed", f"the answer is \\boxed{{{gold}", example.task)


_TASK = {"gold": "19"}
EXAMPLES = (
    Example("right", "12 + 7 = 19. \\boxed{19}", _TASK),
    Example("right", "\\boxed{19.0}", _TASK),
    Example("wrong", "12 + 7 = 19. \\boxed{20}", _TASK),
    Example("wrong", "\\boxed{19} no, \\boxed{18}", _TASK),
    Example("malformed", "12 + 7 = 19.", _TASK),
    Example("malformed", "", _TASK),
    Example("hostile", "\\boxed{19 or 20 or 21}", _TASK),
    Example("hostile", "\\boxed{12 + 7 = 19 = 20}", _TASK),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m verifiers.word_problems", description=heldout.__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    for row in heldout(options.rows, options.seed):
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
