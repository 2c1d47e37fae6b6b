"""Intervals, inequalities, unions and points of the real line as one canonical list of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.number import BASE_DIGITS, SPARE_DIGITS, _context, constant, is_real
from verifiers._math.tree import Node, variables

MAX_PIECES = 40
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Bound:
    """A number or an infinity, and whether it belongs to the piece."""

    value: Any  # Fraction, mpf, or None with the sign in `infinite`
    closed: bool
    infinite: int = 0


Piece = tuple[Bound, Bound]
EVERYTHING: list[Piece] = [(Bound(None, False, -1), Bound(None, False, 1))]


def looks_like_region(node: Node) -> bool:
    if node.op in ("union", "inter", "minus", "where") or (node.op == "const" and node.value == "reals"):
        return True
    if node.op == "add":  # R - {2}
        return looks_like_region(node.args[0])
    if node.op == "rel":
        return node.value in (("!=",), ("in",)) or set(node.value) <= FLIPPED.keys()
    return node.op == "list" and any(looks_like_region(arg) for arg in node.args)


def region_variables(node: Node) -> frozenset[str]:
    r"""The variables of inequalities; not the one of `\{x \mid x > 2\}`, whose name says nothing."""
    if node.op == "rel":
        return variables(node)
    if node.op in ("list", "union", "inter", "minus"):
        return frozenset().union(*map(region_variables, node.args))
    return frozenset()


def region(node: Node) -> list[Piece]:
    """The pieces, sorted and merged. Raises Unsupported for what is no region of the line."""
    return _merged(_pieces(node))


def same_region(left: list[Piece], right: list[Piece]) -> bool:
    if len(left) != len(right):
        return False
    bounds = [pair for a, b in zip(left, right, strict=True) for pair in zip(a, b, strict=True)]
    return all(_compare(a, b) == 0 and a.closed == b.closed for a, b in bounds)


def _pieces(node: Node) -> list[Piece]:
    if node.op == "list":
        return _of_list(node)
    if node.op == "union":
        return _union(node.args)
    if node.op == "inter":
        return _all(node.args)
    if node.op == "const" and node.value == "reals":
        return EVERYTHING
    if node.op == "group" and len(node.args) == 2 and node.value != "::":
        low = _bound(node.args[0], node.value[0] == "[")
        high = _bound(node.args[1], node.value[1] == "]")
        return [_ordered(low, high)]
    if node.op == "set":
        return [(_bound(arg, True),) * 2 for arg in node.args]
    if node.op == "minus":
        return _both(_pieces(node.args[0]), _complement(_pieces(node.args[1])))
    if node.op == "add" and len(node.args) == 2 and node.args[1].op == "neg":
        return _both(_pieces(node.args[0]), _complement(_pieces(node.args[1].args[0])))
    if node.op == "where":
        return _described(node)
    if node.op == "rel":
        return _relation(node)
    raise UnsupportedNotation(f"a {node.op} is no region")


def _of_list(node: Node) -> list[Piece]:
    """`x < 1 or x > 3`, `x < 1 and x > 3`, `x \\ne 2, 3`."""
    first = node.args[0]
    if first.op == "rel" and first.value == ("!=",):
        name = first.args[0]
        return _all([arg if arg.op == "rel" else Node("rel", (name, arg), ("!=",)) for arg in node.args])
    if node.value == "and" and (both := _all(node.args)):
        return both  # where nothing is in both, `x < 1 and x > 3` is how people write a union
    return _union(node.args)


def _union(nodes: Sequence[Node]) -> list[Piece]:
    pieces = [piece for node in nodes for piece in _pieces(node)]
    if len(pieces) > MAX_PIECES:
        raise UnsupportedNotation("a union of too many pieces")
    return pieces


def _all(nodes: Sequence[Node]) -> list[Piece]:
    """What lies in each of several regions."""
    pieces = EVERYTHING
    for node in nodes:
        pieces = _both(pieces, _merged(_pieces(node)))
        if len(pieces) > MAX_PIECES:
            raise UnsupportedNotation("a region of too many pieces")
    return pieces


def _described(node: Node) -> list[Piece]:
    r"""`\{x \in D \mid condition\}`: the conditions speak of x alone."""
    name, domain, *conditions = node.args
    if any(variables(condition) != {name.value} for condition in conditions):
        raise UnsupportedNotation("a set whose condition is not about its variable")
    described = _union(conditions) if node.value == "or" else _all(conditions)
    return _both(_merged(_pieces(domain)), _merged(described))


def _complement(pieces: list[Piece]) -> list[Piece]:
    """The rest of the line."""
    out, low = [], EVERYTHING[0][0]
    for piece_low, piece_high in _merged(pieces):
        if not piece_low.infinite:
            out.append((low, Bound(piece_low.value, not piece_low.closed)))
        if piece_high.infinite:
            return _nonempty(out)
        low = Bound(piece_high.value, not piece_high.closed)
    return _nonempty([*out, (low, EVERYTHING[0][1])])


def _nonempty(pieces: list[Piece]) -> list[Piece]:
    orders = [_compare(low, high) for low, high in pieces]
    return [p for p, order in zip(pieces, orders, strict=True) if order < 0 or (order == 0 and p[0].closed)]


def _relation(node: Node) -> list[Piece]:
    if node.value == ("in",):
        if node.args[0].op != "var":
            raise UnsupportedNotation("membership of what is no variable")
        return _pieces(node.args[1])
    if node.value not in (("!=",), ("=",)):
        return [_inequality(node)]
    left, right = node.args
    if (left.op == "var") == (right.op == "var"):
        raise UnsupportedNotation("an equation that is not solved")
    point = _bound(right if left.op == "var" else left, True)
    if point.infinite:
        raise UnsupportedNotation("an infinite point")
    return _complement([(point, point)]) if node.value == ("!=",) else [(point, point)]


def _both(one: list[Piece], two: list[Piece]) -> list[Piece]:
    """What lies in both."""
    out = []
    for a_low, a_high in one:
        for b_low, b_high in two:
            low = _inner(a_low, b_low, _compare(a_low, b_low) > 0)
            high = _inner(a_high, b_high, _compare(a_high, b_high) < 0)
            order = _compare(low, high)
            if order < 0 or (order == 0 and low.closed and high.closed):
                out.append((low, high))
    return out


def _inner(a: Bound, b: Bound, a_is_further_in: bool) -> Bound:
    if _compare(a, b) == 0:
        return a if not a.closed else b
    return a if a_is_further_in else b


def _ordered(low: Bound, high: Bound) -> Piece:
    order = _compare(low, high)
    if order > 0 or (order == 0 and not (low.closed and high.closed)):
        raise UnsupportedNotation("an interval with nothing in it")
    return low, high


def _bound(node: Node, closed: bool) -> Bound:
    sign = 1
    while node.op == "neg":
        sign, node = -sign, node.args[0]
    if node.op == "const" and node.value == "infty":
        if closed:
            raise UnsupportedNotation("a closed infinity")
        return Bound(None, False, sign)
    value, walk = constant(node)
    if not is_real(value, walk):
        raise UnsupportedNotation("a bound that is not real")
    return Bound(sign * (value if isinstance(value, Fraction) else value.real), closed)


def _inequality(node: Node) -> Piece:
    """x > 1, 1 < x, 1 < x <= 2: one variable alone on one side, constants on the others."""
    sides, operators = list(node.args), list(node.value)
    where = [i for i, side in enumerate(sides) if side.op == "var"]
    if len(where) != 1 or len(sides) > 3 or (len(sides) == 3 and where != [1]):
        raise UnsupportedNotation("an inequality that is no interval")
    low, high = Bound(None, False, -1), Bound(None, False, 1)
    for i, operator in enumerate(operators):
        other = sides[i] if i != where[0] else sides[i + 1]
        if variables(other):
            raise UnsupportedNotation("an inequality between variables")
        if i != where[0]:  # the variable stands on the right
            operator = FLIPPED[operator]
        bound = _bound(other, operator.endswith("="))
        if operator[0] == ">":
            low = bound
        else:
            high = bound
    if len({operator[0] for operator in operators}) != 1:
        raise UnsupportedNotation("a chain of inequalities in both directions")
    return _ordered(low, high)


def _compare(a: Bound, b: Bound) -> int:
    if a.infinite or b.infinite:
        return (a.infinite > b.infinite) - (a.infinite < b.infinite)
    if isinstance(a.value, Fraction) and isinstance(b.value, Fraction):
        return (a.value > b.value) - (a.value < b.value)
    mp = _context(BASE_DIGITS)
    difference = _float(mp, a.value) - _float(mp, b.value)
    return 0 if abs(difference) < mp.mpf(10) ** -SPARE_DIGITS else int(mp.sign(difference))


def _float(mp: Any, value: Any) -> Any:
    return mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _merged(pieces: list[Piece]) -> list[Piece]:
    def order(one: Piece, two: Piece) -> int:
        return _compare(one[0], two[0]) or two[0].closed - one[0].closed

    merged: list[Piece] = []
    for low, high in sorted(pieces, key=cmp_to_key(order)):
        if merged:
            last_low, last_high = merged[-1]
            gap = _compare(low, last_high)
            if gap < 0 or (gap == 0 and (low.closed or last_high.closed)):
                further = _compare(high, last_high)
                closed = high.closed or last_high.closed if further == 0 else False
                top = Bound(high.value, closed, high.infinite) if further == 0 else max(
                    (last_high, high), key=cmp_to_key(_compare)
                )  # fmt: skip
                merged[-1] = (last_low, top)
                continue
        merged.append((low, high))
    return merged
