"""A small world that changes after learning: 8 gadgets with symbols of their own, each with places A to G.

    A -> B (-0.3) -> C -> D (1)         B, D, E and G pay on arrival what the brackets say
    A -> E (0.4)  -> F -> G (0)

Before a change the best walk from A is A B C D, which earns 0.7. The changes:

    reward_moves     D pays 0 and G pays 1     A E F G      1.4
    reward_appears   G pays 1, D as before     A E F G      1.4
    shortcut         A -> C                    A C D        1.0
    new_path         E -> B                    A E B C D    1.1

A prompt is the place (`Q:`), an answer the next place (`x`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

GADGETS, PLACES = 8, "ABCDEFG"
START = "A"
# 56 single bytes: any character tokenizer has one token a place; digits, `<`, `>` and `:` stay for labels
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$&"
_SHUFFLED = random.Random(0).sample(_ALPHABET, GADGETS * len(PLACES))
SYMBOLS = tuple(_SHUFFLED[len(PLACES) * g : len(PLACES) * (g + 1)] for g in range(GADGETS))


@dataclass(frozen=True)
class World:
    """steps: place -> places that one step leads to. pay: what arriving at a place pays, 0 where it is not named."""

    steps: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"A": ("B", "E"), "B": ("C",), "C": ("D",), "E": ("F",), "F": ("G",)}
    )
    pay: Mapping[str, float] = field(default_factory=lambda: {"B": -0.3, "D": 1.0, "E": 0.4})

    def onward(self, place: str) -> tuple[str, ...]:
        return self.steps.get(place, ())

    def paid(self, place: str) -> float:
        return self.pay.get(place, 0.0)

    def walks(self, place: str = START) -> list[str]:
        """Every walk from a place to an end, as a word of places."""
        if not self.onward(place):
            return [place]
        return [place + rest for to in self.onward(place) for rest in self.walks(to)]

    def earned(self, walk: str) -> float:
        return sum(self.paid(place) for place in walk[1:])

    def best_walk(self, place: str = START) -> str:
        return max(self.walks(place), key=self.earned)


_OLD = World()
WORLDS: dict[str, World] = {
    "before": _OLD,
    "reward_moves": World(pay={**_OLD.pay, "D": 0.0, "G": 1.0}),
    "reward_appears": World(pay={**_OLD.pay, "G": 1.0}),
    "shortcut": World(steps={**_OLD.steps, "A": ("B", "E", "C")}),
    "new_path": World(steps={**_OLD.steps, "E": ("F", "B")}),
}
CHANGES = tuple(name for name in WORLDS if name != "before")


class Task(TypedDict):
    gadget: int
    world: NotRequired[str]  # a name of WORLDS; `before` where it is not given


def symbol(gadget: int, place: str) -> str:
    return SYMBOLS[gadget][PLACES.index(place)]


def prompt(gadget: int, place: str) -> str:
    return f"{symbol(gadget, place)}:"


def changed_steps(change: str) -> list[tuple[str, str]]:
    """(place, next place) of the steps of a changed world that pay something else than before, or are new."""
    world = WORLDS[change]
    return [
        (place, to)
        for place, onward in world.steps.items()
        for to in onward
        if to not in _OLD.onward(place) or world.paid(to) != _OLD.paid(to)
    ]


def first_samples(change: str) -> list[tuple[str, str]]:
    """One sample of each changed step: (the walk from A to its place, the walk from its place to an end)."""
    world = WORLDS[change]
    out = []
    for place, to in changed_steps(change):
        leading = next(w for w in world.walks() if place in w)
        out.append((leading[: leading.index(place) + 1], place + world.walks(to)[0]))
    return out


def random_walk(world: World, rng: random.Random) -> str:
    """A walk from A that takes every step from a place equally often."""
    walk = START
    while world.onward(walk[-1]):
        walk += rng.choice(world.onward(walk[-1]))
    return walk


class Environment:
    """A walk of several turns: the answer to each prompt is one step; `pipeline.generation.episodes` plays it."""

    def reset(self, task: Task) -> str:
        self.gadget, self.place = task["gadget"], START
        self.world = WORLDS[task.get("world", "before")]
        return prompt(self.gadget, self.place)

    def step(self, action: str) -> tuple[str, float, bool]:
        """(next prompt, reward, done); an impossible step ends the walk without reward."""
        ways = {symbol(self.gadget, to): to for to in self.world.onward(self.place)}
        if action not in ways:
            return "", 0.0, True
        self.place = ways[action]
        done = not self.world.onward(self.place)
        return prompt(self.gadget, self.place), self.world.paid(self.place), done


def verify(completion: str, task: Task) -> Verdict:
    """A whole walk from A in one answer: the symbols of the places after A. Passes for the best walk.

    The score is what the walk earns, in units of what the best one earns.
    """
    answer = completion.strip()
    if not answer or any(character not in _ALPHABET for character in answer):
        return malformed("not a row of places")
    world, names = WORLDS[task.get("world", "before")], dict(zip(SYMBOLS[task["gadget"]], PLACES, strict=True))
    walk = START
    for number, character in enumerate(answer, 1):
        place = names.get(character, "")
        if place not in world.onward(walk[-1]):
            return failed(f"step {number}: no such step from here")
        walk += place
    if world.onward(walk[-1]):
        return failed("stops before an end")
    best = world.best_walk()
    if walk == best:
        return passed("the best walk")
    earned = world.earned(walk)
    return failed(f"a walk that earns {earned:g}", max(0.0, earned) / world.earned(best))


def answer_of(gadget: int, walk: Sequence[str]) -> str:
    """A walk as one answer: the symbols of its places after the first."""
    return "".join(symbol(gadget, place) for place in walk[1:])


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}: the best walk of a gadget in one of the worlds."""
    rng = random.Random(seed)
    for _ in range(n):
        gadget, world = rng.randrange(GADGETS), rng.choice(tuple(WORLDS))
        yield {
            "prompt": prompt(gadget, START),
            "completion": answer_of(gadget, WORLDS[world].best_walk()),
            "task": {"gadget": gadget, "world": world},
        }


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """A step left out, a step too many, and another walk of the same world."""
    walk, task = example.completion, example.task
    world = WORLDS[task.get("world", "before")]
    yield Example("wrong", walk[:-1], task) if len(walk) > 1 else Example("malformed", "", task)
    yield Example("wrong", walk + walk[-1], task)
    worse = [w for w in world.walks() if w != world.best_walk()]
    yield Example("wrong", answer_of(task["gadget"], rng.choice(worse)), task)
    yield Example("malformed", f"{walk}\n{walk}", task)


_TASK: dict[str, Any] = {"gadget": 0}
EXAMPLES = (
    Example("right", answer_of(0, "ABCD"), _TASK, 1.0),
    Example("right", answer_of(0, "AEFG"), {"gadget": 0, "world": "reward_moves"}, 1.0),
    Example("right", answer_of(0, "ACD"), {"gadget": 0, "world": "shortcut"}, 1.0),
    Example("right", answer_of(0, "AEBCD"), {"gadget": 0, "world": "new_path"}, 1.0),
    Example("wrong", answer_of(0, "AEFG"), _TASK, 0.4 / 0.7),
    Example("wrong", answer_of(0, "ACD"), _TASK),
    Example("wrong", answer_of(0, "ABC"), _TASK),
    Example("wrong", answer_of(1, "ABCD"), _TASK),
    Example("malformed", "", _TASK),
    Example("malformed", "2 then 3", _TASK),
    Example("hostile", answer_of(0, "ABCD") + "\x00", _TASK),
    Example("hostile", answer_of(0, "ABCD") * 1000, _TASK),
)
