"""Gemma 4 and FunctionGemma: <|tool_call>call:NAME{key:value,key:<|"|>text<|"|>}<tool_call|>, any number of them.

Keys stand without quotes and text between quote tokens, which differ between the two: so do the tokens around a call.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pipeline.generation.tool_calls.turn import MalformedCall, ParsedTurn, Schemas, ToolCall, shown

MARKS = (("<|tool_call>call:",), ("<start_function_call>",))
_NAME = re.compile(r"\s*call:([\w.-]+)\s*\{")
_KEY = re.compile(r"\s*([^:{}\[\],]+):")
_PLAIN = re.compile(r"[^,{}\[\]]*")
MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Dialect:
    opening: str
    closing: str
    quote: str


DIALECTS = (
    Dialect("<|tool_call>", "<tool_call|>", '<|"|>'),
    Dialect("<start_function_call>", "<end_function_call>", "<escape>"),
)


def parse(text: str, schemas: Schemas) -> ParsedTurn:
    dialect = next((d for d in DIALECTS if d.opening in text), None)
    if dialect is None:
        return ParsedTurn(text.strip())
    plain_parts, calls, malformed = list[str](), list[ToolCall](), list[str]()
    at = 0
    while (start := text.find(dialect.opening, at)) >= 0:
        plain_parts.append(text[at:start])
        reader = Reader(text, start + len(dialect.opening), dialect.quote)
        try:
            call = reader.call()
            if not text.startswith(dialect.closing, reader.at):
                raise MalformedCall(f"the call does not end with {dialect.closing}")
            calls.append(call)
            at = reader.at + len(dialect.closing)
        except MalformedCall as exc:
            malformed.append(str(exc))
            closing = text.find(dialect.closing, start)
            at = closing + len(dialect.closing) if closing >= 0 else len(text)
    plain_parts.append(text[at:])
    return ParsedTurn("".join(plain_parts).strip(), tuple(calls), tuple(malformed))


class Reader:
    """Reads a call from `at` on."""

    def __init__(self, text: str, at: int, quote: str) -> None:
        self.text, self.at, self.quote = text, at, quote

    def call(self) -> ToolCall:
        found = _NAME.match(self.text, self.at)
        if found is None:
            raise MalformedCall(f"a call must begin with call:NAME{{, found {shown(self.text[self.at :])}")
        self.at = found.end()
        return ToolCall(found[1], self.pairs(0))

    def pairs(self, depth: int) -> dict[str, Any]:
        """What follows an opening brace, up to and including the closing one."""
        out: dict[str, Any] = {}
        while not self.taken("}"):
            if out:
                self.expect(",")
            key = self.key()  # before the value: Python evaluates the right side of an assignment first
            out[key] = self.value(depth)
        return out

    def key(self) -> str:
        if self.taken(self.quote):
            key = self.quoted()
            self.expect(":")
            return key
        found = _KEY.match(self.text, self.at)
        if found is None:
            raise MalformedCall(f"an argument must be name:value, found {shown(self.text[self.at :])}")
        self.at = found.end()
        return found[1].strip()

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise MalformedCall("the arguments are nested too deeply")
        if self.taken(self.quote):
            return self.quoted()
        if self.taken("{"):
            return self.pairs(depth + 1)
        if self.taken("["):
            items: list[Any] = []
            while not self.taken("]"):
                if items:
                    self.expect(",")
                items.append(self.value(depth + 1))
            return items
        found = _PLAIN.match(self.text, self.at)
        plain = found[0].strip() if found else ""
        self.at += len(found[0]) if found else 0
        try:
            return json.loads(plain)
        except ValueError:
            raise MalformedCall(f"text must stand between {self.quote}, found {shown(plain)}") from None

    def quoted(self) -> str:
        end = self.text.find(self.quote, self.at)
        if end < 0:
            raise MalformedCall(f"text does not end with {self.quote}")
        out = self.text[self.at : end]
        self.at = end + len(self.quote)
        return out

    def taken(self, mark: str) -> bool:
        """Whether the mark comes next, after white space; moves past it."""
        rest = self.at + len(self.text[self.at :]) - len(self.text[self.at :].lstrip())
        if not self.text.startswith(mark, rest):
            return False
        self.at = rest + len(mark)
        return True

    def expect(self, mark: str) -> None:
        if not self.taken(mark):
            raise MalformedCall(f"{mark!r} expected, found {shown(self.text[self.at :]) or 'the end'}")
