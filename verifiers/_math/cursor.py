"""The position of a reader in the tokens, and its limits on depth and size."""

from __future__ import annotations

from collections.abc import Callable

from verifiers._math.lexer import Token, UnsupportedNotation
from verifiers._math.tree import Node

MAX_DEPTH = 40
MAX_NODES = 600


class Cursor:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens, self._at, self._depth, self._nodes = _digits_apart(tokens), 0, 0, 0

    # -- tokens

    @property
    def now(self) -> Token:
        return self._tokens[self._at]

    def peek(self, ahead: int) -> Token:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def at(self, kind: str, *texts: str) -> bool:
        return self.now.kind == kind and (not texts or self.now.text in texts)

    def sign(self, *texts: str) -> bool:
        return self.at("sign", *texts)

    def command(self, *texts: str) -> bool:
        return self.at("command", *texts)

    def take(self) -> Token:
        token = self.now
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def expect(self, kind: str, text: str) -> None:
        if not self.at(kind, text):
            raise UnsupportedNotation(f"{self.now.text or 'the end'!r} instead of {text or 'the end'!r}")
        self.take()

    def make(self, op: str, *args: Node, value: object = None) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise UnsupportedNotation("too many parts")
        return Node(op, args, value)

    def deeper(self, read: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnsupportedNotation("nested too deeply")
        node = read()
        self._depth -= 1
        return node


def _digits_apart(tokens: list[Token]) -> list[Token]:
    r"""`\frac12` takes a digit each, as TeX reads it."""
    apart: list[Token] = []
    for token in tokens:
        if token.kind == "num" and len(token.text) > 1 and apart and apart[-1].text in ("frac", "binom"):
            if not token.text.isdigit():
                raise UnsupportedNotation("a fraction without braces")
            apart += [Token("num", digit) for digit in token.text]
        else:
            apart.append(token)
    return apart
