"""Exact arithmetic. Nothing is evaluated by Python: the expression is parsed and computed in fractions."""

from __future__ import annotations

import ast
import math
from decimal import Context, Decimal
from fractions import Fraction

from verifiers.tools import ToolError, ToolExample

MAX_CHARS = 500
MAX_BITS = 4096  # of a numerator or denominator
MAX_DEPTH = 60
DIGITS = 12  # significant digits of a result that has no short exact form


def calculator(expression: str) -> str:
    """Compute the value of an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and brackets, such as (3 + 4) * 12.
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(f"the expression is longer than {MAX_CHARS} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(f"{expression[:80]!r} is not an arithmetic expression") from None
    return shown(_value(tree))


def _value(node: ast.expr, depth: int = 0) -> Fraction:
    if depth > MAX_DEPTH:
        raise ToolError("the expression is nested too deeply")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        if node.value in (math.inf, -math.inf):
            raise ToolError("the number is too large")
        return _bounded(Fraction(repr(node.value)))  # 0.1 as it is written, not as the float nearest to it
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        return _bounded(_computed(node.op, _value(node.left, depth + 1), _value(node.right, depth + 1)))
    raise ToolError("only numbers, + - * / // % ** and brackets can be computed")


def _computed(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Mult):
        return left * right
    if isinstance(operator, ast.Pow):
        return _power(left, right)
    if isinstance(operator, ast.BitXor):
        raise ToolError("write ** for powers, not ^")
    if not isinstance(operator, ast.Div | ast.FloorDiv | ast.Mod):
        raise ToolError("only + - * / // % ** can be computed")
    if right == 0:
        raise ToolError("division by zero")
    if isinstance(operator, ast.Div):
        return left / right
    return Fraction(left // right) if isinstance(operator, ast.FloorDiv) else left % right


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("only whole exponents can be computed")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and abs(exponent.numerator) * (bits - 1) > MAX_BITS:  # before it is computed
        raise ToolError("the result is too large")
    if abs(exponent.numerator) > MAX_BITS and base not in (0, 1, -1):
        raise ToolError("the result is too large")
    return base**exponent.numerator


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ToolError("the result is too large")
    return value


def shown(value: Fraction) -> str:
    """A whole number in full, a decimal fraction exactly where it is short, else rounded to DIGITS digits."""
    if value.denominator == 1:
        return str(value.numerator)
    rounded = Context(prec=DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator)).normalize()
    exponent = rounded.adjusted()
    return f"{rounded:f}" if -7 <= exponent <= 20 else str(rounded)


EXAMPLES = (
    ToolExample("right", [{"expression": "(3 + 4) * 12"}], "84"),
    ToolExample("right", [{"expression": "0.1 + 0.2"}], "0.3"),
    ToolExample("right", [{"expression": "7 / 2"}], "3.5"),
    ToolExample("right", [{"expression": "2 / 3"}], "0.666666666667"),
    ToolExample("right", [{"expression": "-2 ** 2"}], "-4"),
    ToolExample("right", [{"expression": "7 // -2"}], "-4"),
    ToolExample("right", [{"expression": "2 ** 200"}], "1606938044258990275541962092341162602522202993782792835301376"),
    ToolExample("mistake", [{"expression": "1 / 0"}], "division by zero"),
    ToolExample("mistake", [{"expression": "2 ^ 3"}], "**"),
    ToolExample("mistake", [{"expression": "two + 2"}], "only numbers"),
    ToolExample("mistake", [{"expression": "3 +"}], "not an arithmetic expression"),
    ToolExample("hostile", [{"expression": "9 ** 9 ** 9 ** 9"}]),
    ToolExample("hostile", [{"expression": "1e400"}]),
    ToolExample("hostile", [{"expression": "(" * 400 + "1"}]),
    ToolExample("hostile", [{"expression": "-" * 400 + "1"}]),
    ToolExample("hostile", [{"expression": "__import__('os').getcwd()"}]),
)
