"""Units, percentages, degrees and repeating decimals: what may stand around a number."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from verifiers._math.cursor import Cursor
from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.tree import Node, number
from verifiers._math.units import MULTIPLIERS, unit_name

PERCENT = frozenset(("percent", "per cent", "pct", "percentage"))
QUANTITIES = ("percent", "degree", "unit")
MAX_PERIOD = 20  # digits


class QuantityReader(Cursor):
    group_or_token: Callable[[], Node]

    def with_unit(self, node: Node) -> Node:
        r"""`10\text{ cm}^2`: words after a value are its unit, if they are the kind of words units are."""
        if self.command("$"):  # 5\$
            self.take()
            return self.make("unit", node, value="dollar")
        if not self.at("text"):
            return node
        if node.op == "text":
            raise UnsupportedNotation("text after text")
        if node.op == "rel":
            *sides, last = node.args
            return self.make("rel", *sides, self.with_unit(last), value=node.value)
        return self.scaled(node, self.take().text)

    def scaled(self, node: Node, words: str) -> Node:
        if node.op == "degree" and words in ("C", "F"):
            return self.make("unit", node.args[0], value="celsius" if words == "C" else "fahrenheit")
        if node.op in QUANTITIES:
            raise UnsupportedNotation("a unit after a unit")
        first = (words.lower().split() or [""])[0]
        if first in MULTIPLIERS:
            if node.op != "num":
                raise UnsupportedNotation(words)
            node = self.make("mixed", value=node.value * MULTIPLIERS[first])
            words = words.strip()[len(first) :].strip()
            if not words and not self.at("text"):
                return node
        if words.strip().lower() in PERCENT:
            return self.make("percent", node)
        return self.make("unit", node, value=unit_name(words + self.rest_of_unit()))

    def rest_of_unit(self) -> str:
        r"""What continues a unit: `^2`, `/\text{s}`, `\cdot\text{m}`, or more words."""
        rest = ""
        while True:
            if self.sign("^"):
                self.take()
                rest += self.unit_power()
            elif self.at("text"):
                rest += " " + self.take().text
            elif (self.sign("*", "/") or self.command("cdot", "times")) and self.peek(1).kind == "text":
                rest += "/" if self.take().text == "/" else " "
            else:
                return rest

    def unit_power(self) -> str:
        negative = self.sign("-")
        if negative:
            self.take()
        exponent = self.group_or_token()
        if exponent.op == "neg":
            negative, exponent = not negative, exponent.args[0]
        if exponent.op != "num" or exponent.value.denominator != 1:
            raise UnsupportedNotation("a unit with a strange exponent")
        return f"^{'-' if negative else ''}{exponent.value}"

    def degrees(self, node: Node) -> Node:
        r"""An angle, or a temperature: `37^\circ\text{C}`, `37^\circ C`."""
        scale = self.now.text.strip()
        if self.now.kind in ("text", "letter") and scale in ("C", "F") and self.peek(1).kind != "sign":
            self.take()
            return self.make("unit", node, value="celsius" if scale == "C" else "fahrenheit")
        return self.make("degree", node)

    def repeating(self, value: Fraction, text: str) -> Node:
        r"""`0.1\overline{6}`, `0.1\dot{6}`, `0.(3)`, `0.333\ldots`: digits that go on for ever."""
        if "." not in text or "e" in text:
            return number(value)
        if self.command("overline"):
            self.take()
            return _periodic(text, self.digits_in_braces())
        if self.command("dot"):
            return _periodic(text, self.dotted())
        if self.command("ldots"):
            self.take()
            return _periodic(*_period_of(text))
        if text.endswith(".") and self.sign("(") and self.peek(1).kind == "num" and self.peek(2).text == ")":
            self.take()
            digits = self.take().text
            self.take()
            return _periodic(text, digits)
        return number(value)

    def dotted(self) -> str:
        r"""`\dot{1}4285\dot{7}`: from the first dotted digit to the last."""
        self.take()
        digits = self.digits_in_braces()
        if self.at("num") or self.command("dot"):
            if self.at("num"):
                digits += self.take().text
            if not self.command("dot"):
                raise UnsupportedNotation("a dotted digit inside a number")
            self.take()
            digits += self.digits_in_braces()
        return digits

    def digits_in_braces(self) -> str:
        if self.at("num"):  # \dot3
            return self.take().text
        self.expect("sign", "{")
        text = self.take().text
        self.expect("sign", "}")
        return text


def _periodic(text: str, period: str) -> Node:
    if not period.isdigit() or len(period) > MAX_PERIOD:
        raise UnsupportedNotation("a line over what is no row of digits")
    decimals = len(text.partition(".")[2])
    return number(literal(text) + Fraction(int(period), (10 ** len(period) - 1) * 10**decimals))


def _period_of(text: str) -> tuple[str, str]:
    """0.1666 -> (0.1666, 6): the shortest period that the shown digits repeat, three times if it is of one or two."""
    digits = text.partition(".")[2]
    for length in range(1, min(MAX_PERIOD, len(digits) // 2) + 1):
        times = 3 if length < 3 else 2
        period = digits[-length:]
        if len(digits) >= times * length and digits.endswith(period * times):
            return text, period
    raise UnsupportedNotation("a decimal that goes on in no shown way")


def literal(text: str) -> Fraction:
    mantissa, _, exponent = text.partition("e")
    if exponent and abs(int(exponent)) > 400:
        raise UnsupportedNotation("an exponent over 400")
    return Fraction(mantissa + ("0" if mantissa.endswith(".") else "")) * Fraction(10) ** int(exponent or 0)


def is_literal(node: Node) -> bool:
    """A number as a reader would write it as an argument: 0, -1, 1/2, pi."""
    if node.op == "neg":
        return is_literal(node.args[0])
    if node.op == "div":
        return all(arg.op == "num" for arg in node.args)
    return node.op in ("num", "mixed", "degree") or (node.op == "const" and node.value == "pi")
