"""The tree an answer is read into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """One construct.

    num value=Fraction · mixed value=Fraction (1 1/2) · var value=name · const value=pi, e, i or infty
    add, mul args · neg, factorial, percent, degree args[0] · div, pow args[0], args[1] · pm args (first ± second)
    call value=function name, args · unit value=unit, args[0] · base value=(digits, base) · text value=words
    list args (no brackets: a, b or c), value="and" of two relations so joined
    group value="(]", args · set args · matrix value=columns, args row by row
    apply value=function's name, args: f(0), P(A|B) · where value="and"|"or", args name, domain, conditions
    rel value=operators, args one more · union, inter, minus args · abs args[0] · interval is a group of two
    """

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None

    def walk(self) -> Iterator[Node]:
        yield self
        for arg in self.args:
            yield from arg.walk()

    def has(self, *ops: str) -> bool:
        return any(node.op in ops for node in self.walk())


def number(value: int | Fraction) -> Node:
    return Node("num", (), Fraction(value))


def variables(node: Node) -> frozenset[str]:
    return frozenset(part.value for part in node.walk() if part.op == "var")
