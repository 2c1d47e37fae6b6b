"""A scalar times a matrix, worked out cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.number import constant
from verifiers._math.tree import Node, number


def scaled_matrix(node: Node) -> Node:
    """2 M, M / 2 and -M as a matrix, if node is one of them; node itself if not."""
    if node.op == "neg":
        return _scaled(node.args[0], lambda cell: Node("neg", (cell,)), node)
    if node.op == "div":
        bottom = node.args[1]
        return _scaled(node.args[0], lambda cell: Node("div", (cell, bottom)), node)
    if node.op != "mul" or sum(arg.op == "matrix" for arg in node.args) != 1:
        return node
    factors = tuple(arg for arg in node.args if arg.op != "matrix")
    (matrix,) = (arg for arg in node.args if arg.op == "matrix")
    return _scaled(matrix, lambda cell: Node("mul", (*factors, cell)), node)


def _scaled(inner: Node, scale: Callable[[Node], Node], node: Node) -> Node:
    inner = scaled_matrix(inner)
    if inner.op != "matrix":
        return node
    return Node("matrix", tuple(_worked_out(scale(cell)) for cell in inner.args), inner.value)


def _worked_out(cell: Node) -> Node:
    """The cell as one number if it is rational: the product is the matrix's form, and no sum left to do."""
    try:
        value, _ = constant(cell)
    except UnsupportedNotation:
        return cell
    return number(value) if isinstance(value, Fraction) else cell
