"""Stitch the halves of two logged walks into a best path that no log holds: 16 small gadgets with their own symbols.

A gadget has five places, written 1 to 5 here and as private symbols in prompts. From 1 one can step to 2 or 4, from 2
to 3 or 5; 3, 4 and 5 are ends and pay 1, 0.6 and 0. A prompt is the place (`Q:`), an answer the next place (`x`).
`logs` holds three walks of every gadget, equally often: 2→3, 1→4 and 1→2→5. The best walk from 1, 1→2→3, is in none of
them: a method that judges a step by the return of its own walk learns 1→4.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

GADGETS = 16
STEPS = {1: (2, 4), 2: (3, 5)}
PAY = {3: 1.0, 4: 0.6, 5: 0.0}
WALKS = ((2, 3), (1, 4), (1, 2, 5))  # what the logs hold
BEST = (1, 2, 3)
# 80 single bytes, so that any character tokenizer has one token a place; digits, `<`, `>` and `:` stay for labels
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!\"#$%&'()*+,-./;=?@[]^_`{|}~"
_SHUFFLED = random.Random(0).sample(_ALPHABET, GADGETS * 5)
SYMBOLS = tuple(tuple(_SHUFFLED[5 * g : 5 * g + 5]) for g in range(GADGETS))


class Task(TypedDict):
    gadget: int
    place: int  # where the walk starts


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One step of a logged walk: at `place` of `gadget` the walk went to `to`, and was paid `reward`."""

    gadget: int
    place: int
    to: int
    reward: float


def symbol(gadget: int, place: int) -> str:
    return SYMBOLS[gadget][place - 1]


def prompt(gadget: int, place: int) -> str:
    return f"{symbol(gadget, place)}:"


def logs(medium: float = PAY[4]) -> list[list[WalkStep]]:
    """Every logged walk once: 16 gadgets x 3. medium: what place 4 pays."""
    pay = {**PAY, 4: medium}
    return [
        [WalkStep(gadget, here, to, pay.get(to, 0.0)) for here, to in pairwise(walk)]
        for gadget in range(GADGETS)
        for walk in WALKS
    ]


def best_values(start: int, medium: float = PAY[4]) -> dict[int, float]:
    """Q* of each step from a place: what it pays when all that follows is best."""
    pay = {**PAY, 4: medium}

    def value(place: int) -> float:
        return pay[place] if place in pay else max(value(to) for to in STEPS[place])

    return {to: value(to) for to in STEPS[start]}


class Environment:
    """A walk of several turns: the answer to each prompt is one step; `pipeline.generation.episodes` plays it."""

    def __init__(self, medium: float = PAY[4]) -> None:
        self.pay = {**PAY, 4: medium}

    def reset(self, task: Task) -> str:
        self.gadget, self.place = task["gadget"], task["place"]
        return prompt(self.gadget, self.place)

    def step(self, action: str) -> tuple[str, float, bool]:
        """(next prompt, reward, done); an impossible step ends the walk without reward."""
        ways = {symbol(self.gadget, to): to for to in STEPS[self.place]}
        if action not in ways:
            return "", 0.0, True
        self.place = ways[action]
        return prompt(self.gadget, self.place), self.pay.get(self.place, 0.0), self.place in PAY


def verify(completion: str, task: Task) -> Verdict:
    """A whole walk in one answer: the symbols of the places visited. Passes if no walk earns more."""
    walk = completion.strip()
    environment = Environment()
    environment.reset(task)
    if not walk or any(character not in _ALPHABET for character in walk):
        return malformed("not a row of places")
    paid, over = 0.0, False
    for number, action in enumerate(walk, 1):
        if over:
            return failed(f"step {number}: goes on after the end")
        seen, reward, over = environment.step(action)
        if not seen:
            return failed(f"step {number}: no such step from here")
        paid += reward
    if not over:
        return failed("stops before an end")
    best = max(best_values(task["place"]).values())
    return passed("the best end") if paid == best else failed(f"an end that pays {paid}; the best pays {best}", paid)


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}: the best walk of a gadget from place 1 or 2."""
    rng = random.Random(seed)
    for _ in range(n):
        gadget, start = rng.randrange(GADGETS), rng.choice((1, 2))
        steps = BEST[BEST.index(start) + 1 :]
        yield {
            "prompt": prompt(gadget, start),
            "completion": "".join(symbol(gadget, place) for place in steps),
            "task": {"gadget": gadget, "place": start},
        }


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """A step left out, a step too many, and the worse ends."""
    walk, task = example.completion, example.task
    gadget = task["gadget"]
    yield Example("wrong", walk[:-1], task) if len(walk) > 1 else Example("malformed", "", task)
    yield Example("wrong", walk + rng.choice(walk), task)
    yield Example("wrong", walk[:-1] + symbol(gadget, 5), task)
    yield Example("wrong", symbol(gadget, 4), task)
    yield Example("malformed", f"{walk}\n{walk}", task)


_TASK = {"gadget": 0, "place": 1}
_A, _B, _C, _D, _E = SYMBOLS[0]
EXAMPLES = (
    Example("right", _B + _C, _TASK, 1.0),
    Example("right", _C, {"gadget": 0, "place": 2}, 1.0),
    Example("wrong", _D, _TASK, 0.6),
    Example("wrong", _B + _E, _TASK, 0.0),
    Example("wrong", _B, _TASK),
    Example("wrong", _B + _C + _C, _TASK),
    Example("wrong", symbol(1, 2) + symbol(1, 3), _TASK),
    Example("malformed", "", _TASK),
    Example("malformed", "2 then 3", _TASK),
    Example("hostile", _B + "\x00", _TASK),
    Example("hostile", (_B + _C) * 1000, _TASK),
)
