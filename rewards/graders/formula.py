"""The formula of a multi grader, such as `0.7 * exact + 0.3 * min(style, 1)`: parsed here, never given to eval.

    sum      product (("+" | "-") product)*
    product  unary (("*" | "/") unary)*
    unary    "-" unary | "+" unary | power
    power    atom ("^" | "**") unary, from right to left
    atom     number | name | function "(" sum ("," sum)* ")" | "(" sum ")"

Functions: min, max, abs, floor, ceil, exp, sqrt, log (natural). A name is a grader of the same multi grader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

Node = Callable[[Mapping[str, float]], float]
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil,
    "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
}  # fmt: skip
SEVERAL = ("min", "max")  # functions of any number of arguments; the others take one
MAX_CHARS, MAX_DEPTH = 2000, 50
_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\*\*|[-+*/^(),]))")


class Formula:
    """A parsed formula. names: the graders it reads."""

    def __init__(self, text: str) -> None:
        """Raises ValueError with the position at which the text is no formula."""
        if len(text) > MAX_CHARS:
            raise ValueError(f"the formula is longer than {MAX_CHARS} characters")
        self.text, self.names = text, set[str]()
        self._tokens = self._split(text)
        self._at = self._depth = 0
        self._node = self._sum()
        if self._at < len(self._tokens):
            raise self._fault()

    def __call__(self, values: Mapping[str, float]) -> float:
        """The value. Raises ArithmeticError or ValueError where it has none: a division by 0, log(0)."""
        result = self._node(values)
        if isinstance(result, complex) or not math.isfinite(result):
            raise ArithmeticError(f"{self.text} has no finite value")
        return float(result)

    @staticmethod
    def _split(text: str) -> list[tuple[str, str, int]]:
        """(kind, text, position) of each token; kind is number, name or sign."""
        tokens, at = [], 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"formula {text!r}: {text[at:].strip()[:1]!r} at character {at + 1} is not understood")
            kind = ("number", "name", "sign")[next(i for i, part in enumerate(found.groups()) if part is not None)]
            tokens.append((kind, found[0].strip(), found.start()))
            at = found.end()
        return tokens

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self, *signs: str) -> str:
        """The next token if it is one of the signs; else "", and it stays."""
        if self._peek() in signs and self._peek():
            self._at += 1
            return self._tokens[self._at - 1][1]
        return ""

    def _fault(self) -> ValueError:
        if self._at >= len(self._tokens):
            return ValueError(f"formula {self.text!r} ends too early")
        _, word, position = self._tokens[self._at]
        return ValueError(f"formula {self.text!r}: {word!r} at character {position + 1} is not expected there")

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"formula {self.text!r} is nested more than {MAX_DEPTH} deep")
        node = self._product()
        while sign := self._take("+", "-"):
            node = _binary(sign, node, self._product())
        self._depth -= 1
        return node

    def _product(self) -> Node:
        node = self._unary()
        while sign := self._take("*", "/"):
            node = _binary(sign, node, self._unary())
        return node

    def _unary(self) -> Node:
        negative = False
        while sign := self._take("-", "+"):
            negative ^= sign == "-"
        node = self._power()
        return (lambda values: -node(values)) if negative else node

    def _power(self) -> Node:
        base = self._atom()
        if not self._take("^", "**"):
            return base
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"formula {self.text!r} is nested more than {MAX_DEPTH} deep")
        exponent = self._unary()
        self._depth -= 1
        return lambda values: math.pow(base(values), exponent(values))

    def _atom(self) -> Node:
        if self._take("("):
            return self._closed(self._sum())
        if self._at >= len(self._tokens):
            raise self._fault()
        kind, word, _ = self._tokens[self._at]
        if kind == "sign":
            raise self._fault()
        self._at += 1
        if kind == "number":
            number = float(word)
            return lambda values: number
        if self._peek() == "(":
            return self._call(word)
        self.names.add(word)
        return lambda values: values[word]

    def _call(self, word: str) -> Node:
        if word not in FUNCTIONS:
            raise ValueError(f"formula {self.text!r}: no function {word!r}; have: {', '.join(FUNCTIONS)}")
        self._take("(")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        if word not in SEVERAL and len(arguments) != 1:
            raise ValueError(f"formula {self.text!r}: {word} takes one argument, found {len(arguments)}")
        function = FUNCTIONS[word]
        if len(arguments) == 1 and word in SEVERAL:
            return self._closed(arguments[0])
        return self._closed(lambda values: function(*(argument(values) for argument in arguments)))

    def _closed(self, node: Node) -> Node:
        if not self._take(")"):
            raise self._fault()
        return node


def _binary(sign: str, left: Node, right: Node) -> Node:
    if sign == "+":
        return lambda values: left(values) + right(values)
    if sign == "-":
        return lambda values: left(values) - right(values)
    if sign == "*":
        return lambda values: left(values) * right(values)
    return lambda values: left(values) / right(values)


__all__ = ["FUNCTIONS", "Formula"]
