"""A tree -> its value at a point: exact rational as long as it can be, else a complex float of enough digits.

Every operation is bounded before it is done: exponents, factorials and digits first, then the arithmetic.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.tree import Node, variables

MAX_BITS = 12_000  # of a numerator or denominator
MAX_FACTORIAL = 200
MAX_DIGITS = 1500  # of a float
BASE_DIGITS = 50
SPARE_DIGITS = 30  # two values that differ by less than 10^-(SPARE_DIGITS + size) are one
Value = Any  # Fraction or a context's mpc
Point = Mapping[str, Fraction]

_local = threading.local()


class Undefined(ArithmeticError):
    """The expression has no value at this point: 1/0, ln 0."""


def _context(digits: int) -> Any:
    """A private mpmath context of this thread: the library's own is one for the whole process."""
    if not hasattr(_local, "mp"):
        from mpmath.ctx_mp import MPContext

        _local.mp = MPContext()
    _local.mp.dps = digits
    return _local.mp


class _Evaluation:
    """One walk over a tree. bits: the size of the largest or smallest number met; real: none met was complex."""

    def __init__(self, point: Point, digits: int) -> None:
        self._point, self._digits, self.bits, self.real = point, digits, 1, True

    @property
    def mp(self) -> Any:
        return _context(self._digits)

    def floating(self, value: Value) -> Any:
        if isinstance(value, Fraction):
            return self.mp.mpc(value.numerator) / value.denominator
        return value

    def sized(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            bits = max(value.numerator.bit_length(), value.denominator.bit_length())
            if bits > MAX_BITS:
                raise UnsupportedNotation("a number too large to evaluate")
        else:
            if not self.mp.isfinite(value):
                raise Undefined("not finite")
            self.real = self.real and is_real(value, self)
            bits = abs(int(self.mp.mag(value))) if value else 1
            if bits > MAX_BITS:
                raise UnsupportedNotation("a number too large to evaluate")
        self.bits = max(self.bits, bits)
        return value

    def of(self, node: Node) -> Value:
        method = getattr(self, f"_{node.op}", None)
        if method is None:
            raise UnsupportedNotation(f"no value for a {node.op}")
        return self.sized(method(node))

    def _num(self, node: Node) -> Value:
        return node.value

    _mixed = _num

    def _var(self, node: Node) -> Value:
        return self._point[node.value]

    def _const(self, node: Node) -> Value:
        if node.value not in ("pi", "e", "i"):
            raise UnsupportedNotation(f"no value for {node.value}")
        return {
            "pi": lambda: self.mp.mpc(self.mp.pi),
            "e": lambda: self.mp.mpc(self.mp.e),
            "i": lambda: self.mp.mpc(0, 1),
        }[node.value]()

    def _add(self, node: Node) -> Value:
        return self._fold(node, lambda a, b: a + b)

    def _mul(self, node: Node) -> Value:
        return self._fold(node, lambda a, b: a * b)

    def _fold(self, node: Node, combine: Any) -> Value:
        total = self.of(node.args[0])
        for arg in node.args[1:]:
            right = self.of(arg)
            if isinstance(total, Fraction) != isinstance(right, Fraction):
                total, right = self.floating(total), self.floating(right)
            total = self.sized(combine(total, right))
        return total

    def _apply(self, node: Node) -> Value:
        """A function nobody knows, as a number that its name and arguments decide: f(1+1) is f(2), and not 2f."""
        texts = []
        for arg in node.args:
            value = self.of(arg)
            texts.append(str(value) if isinstance(value, Fraction) else _context(BASE_DIGITS).nstr(value, SPARE_DIGITS))
        digest = hashlib.sha256("|".join([str(node.value), *texts]).encode()).digest()
        return Fraction(int.from_bytes(digest[:8]), 2**61 - 1)

    def _neg(self, node: Node) -> Value:
        return -self.of(node.args[0])

    def _percent(self, node: Node) -> Value:
        return self.of(node.args[0]) / 100

    def _degree(self, node: Node) -> Value:
        return self.floating(self.of(node.args[0])) * self.mp.pi / 180

    def _div(self, node: Node) -> Value:
        top, bottom = self.of(node.args[0]), self.of(node.args[1])
        if self.is_zero(bottom):
            raise Undefined("division by zero")
        if isinstance(top, Fraction) and isinstance(bottom, Fraction):
            return top / bottom
        return self.floating(top) / self.floating(bottom)

    def is_zero(self, value: Value) -> bool:
        if isinstance(value, Fraction):
            return value == 0
        return abs(value) < self.mp.mpf(10) ** -(SPARE_DIGITS + 5)

    def _abs(self, node: Node) -> Value:
        value = self.of(node.args[0])
        return abs(value) if isinstance(value, Fraction) else self.mp.mpc(abs(value))

    def _factorial(self, node: Node) -> Value:
        value = self.of(node.args[0])
        if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
            raise UnsupportedNotation("a factorial too large to evaluate")
        return Fraction(math.factorial(int(value)))

    def _pow(self, node: Node) -> Value:
        return self.power(self.of(node.args[0]), self.of(node.args[1]))

    def power(self, base: Value, exponent: Value) -> Value:
        if isinstance(exponent, Fraction) and isinstance(base, Fraction):
            if base == 0:
                if exponent <= 0:
                    raise Undefined("zero to a power that is not positive")
                return base
            if exponent.denominator == 1:
                bits = max(base.numerator.bit_length(), base.denominator.bit_length())
                if (bits if abs(base) != 1 else 1) * abs(exponent) > MAX_BITS:
                    raise UnsupportedNotation("a power too large to evaluate")
                return base ** int(exponent)
            if base < 0 and exponent.denominator % 2:  # the real root of a negative number, as schools have it
                root = self.power(-base, exponent)
                return -root if exponent.numerator % 2 else root
            if (root := exact_root(base, exponent.denominator)) is not None:
                return self.power(root, Fraction(exponent.numerator))
        base, exponent = self.floating(base), self.floating(exponent)
        if self.is_zero(base):
            raise Undefined("a power of zero")
        if abs(self.mp.mag(base)) * abs(exponent) > MAX_BITS or abs(exponent) > MAX_BITS:
            raise UnsupportedNotation("a power too large to evaluate")
        return self.mp.power(base, exponent)

    def _call(self, node: Node) -> Value:
        first = self.of(node.args[0])
        second = self.of(node.args[1]) if len(node.args) > 1 else None
        if node.value == "sqrt":
            degree = Fraction(2) if second is None else second
            if not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 <= degree <= 100:
                raise UnsupportedNotation("a root of a strange degree")
            return self.power(first, 1 / degree)
        if node.value == "binom":
            return self._binomial(first, second)
        if node.value in ("log", "ln", "lg"):
            return self._logarithm(node.value, first, second)
        return self._transcendental(node.value, self.floating(first))

    def _binomial(self, n: Value, k: Value) -> Value:
        for value in (n, k):
            if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 10 * MAX_FACTORIAL:
                raise UnsupportedNotation("a binomial too large to evaluate")
        return Fraction(math.comb(int(n), int(k)))

    def _logarithm(self, name: str, value: Value, base: Value | None) -> Value:
        if self.is_zero(value) or (base is not None and (self.is_zero(base) or base == 1)):
            raise Undefined("a logarithm of zero or to base 0 or 1")
        natural = self.mp.ln(self.floating(value))
        if name == "ln":
            return natural
        return natural / self.mp.ln(10 if base is None else self.floating(base))

    def _transcendental(self, name: str, value: Any) -> Value:
        mp = self.mp
        if abs(value) > 1000:
            raise UnsupportedNotation(f"{name} of a number too large to evaluate")
        names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
        result = getattr(mp, names.get(name, name))(value)
        return mp.mpc(result)


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The rational root of a rational above zero, where there is one."""
    if value < 0 or degree > 64:
        return None
    roots = []
    for n in (value.numerator, value.denominator):
        root = math.isqrt(n) if degree == 2 else round(n ** (1 / degree)) if n.bit_length() < 900 else 0
        if root**degree != n:
            return None
        roots.append(root)
    return Fraction(roots[0], roots[1])


def values_at(nodes: tuple[Node, ...], point: Point) -> tuple[tuple[Value, ...], _Evaluation]:
    """The nodes' values, with as many digits as the largest and smallest numbers in them ask for."""
    digits = BASE_DIGITS
    while True:
        walk = _Evaluation(point, digits)
        values = tuple(walk.of(node) for node in nodes)
        needed = BASE_DIGITS + int(walk.bits * 0.302) * 2
        if needed <= digits or all(isinstance(value, Fraction) for value in values):
            return values, walk
        if needed > MAX_DIGITS:
            raise UnsupportedNotation("numbers too far apart to compare")
        digits = needed


def same_value(left: Value, right: Value, walk: _Evaluation) -> bool:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    difference = abs(walk.floating(left) - walk.floating(right))
    return bool(difference < walk.mp.mpf(10) ** -(SPARE_DIGITS + int(walk.bits * 0.302)))


def is_real(value: Value, walk: _Evaluation) -> bool:
    return isinstance(value, Fraction) or bool(abs(value.imag) < walk.mp.mpf(10) ** -SPARE_DIGITS)


def sample_points(names: frozenset[str], *, whole: bool = False) -> list[Point]:
    """Four points to compare functions at: three positive, then one negative. Rational and far from anything round;
    whole: whole numbers, for what has no other values, such as factorials."""
    if not names:
        return [{}]
    if whole:
        return [{name: Fraction(n + 5 * i) for i, name in enumerate(sorted(names))} for n in (7, 12, 18, 25)]
    rng = random.Random(20240229)
    points = [{name: Fraction(rng.randint(300, 2900), 997) for name in sorted(names)} for _ in range(3)]
    return [*points, {name: -value for name, value in points[0].items()}]


def equal_everywhere(left: Node, right: Node) -> bool:
    """Whether two expressions are one function, as seen at sample_points.

    A point where either is undefined says nothing, nor does a negative one that leads through complex numbers:
    sqrt(x)sqrt(y) and sqrt(xy) are one answer, sqrt(x^2) and x are not. Raises Unsupported where nothing could be seen.
    """
    names = variables(left) | variables(right)
    whole = any(node.op == "factorial" or node.value == "binom" for side in (left, right) for node in side.walk())
    seen = 0
    for i, point in enumerate(sample_points(names, whole=whole)):
        try:
            (a, b), walk = values_at((left, right), point)
        except Undefined:
            continue
        if i == 3 and not walk.real:
            continue
        if not same_value(a, b, walk):
            return False
        seen += 1
    if seen == 0 or (names and seen < 2):
        raise UnsupportedNotation("no value to compare")
    return True


def proportional(left: Node, right: Node) -> bool:
    """Whether left = c·right for one constant c other than 0: the two sides of equations `left = 0`, `right = 0`."""
    names = variables(left) | variables(right)
    ratios = []
    for point in sample_points(names)[:3]:
        try:
            (a, b), walk = values_at((left, right), point)
        except Undefined:
            continue
        if walk.is_zero(a) or walk.is_zero(b):
            return False
        exact = isinstance(a, Fraction) and isinstance(b, Fraction)
        ratios.append(a / b if exact else walk.floating(a) / walk.floating(b))
    if len(ratios) < 2:
        raise UnsupportedNotation("no value to compare")
    return all(same_value(ratio, ratios[0], walk) for ratio in ratios)


def constant(node: Node) -> tuple[Value, _Evaluation]:
    """The value of an expression without variables. Raises Unsupported, also where there is none."""
    try:
        (value,), walk = values_at((node,), {})
    except Undefined as exc:
        raise UnsupportedNotation(f"no value: {exc}") from None
    except KeyError as exc:
        raise UnsupportedNotation(f"the variable {exc}") from None
    return value, walk
