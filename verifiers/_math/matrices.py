"""Matrices: pmatrix, bmatrix, array and their like, cell by cell."""

from __future__ import annotations

from collections.abc import Callable

from verifiers._math.cursor import Cursor
from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.tree import Node

MATRICES = frozenset("pmatrix bmatrix Bmatrix vmatrix matrix smallmatrix array".split())


class MatrixReader(Cursor):
    item: Callable[[], Node]

    def matrix(self) -> Node:
        kind = self.environment()
        if kind == "array" and self.sign("{"):  # the column layout
            while not self.sign("}"):
                if self.at("end"):
                    raise UnsupportedNotation("an array that does not end")
                self.take()
            self.take()
        rows: list[list[Node]] = [[]]
        while not self.command("end"):
            if self.command("\\"):
                self.take()
                rows.append([])
            elif self.sign("&"):
                self.take()
            else:
                rows[-1].append(self.item())
        self.take()
        if self.environment() != kind:
            raise UnsupportedNotation("a matrix that ends as another")
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) != 1:
            raise UnsupportedNotation("a matrix with rows of different length")
        return self.make("matrix", *(cell for row in rows for cell in row), value=len(rows[0]))

    def environment(self) -> str:
        self.expect("sign", "{")
        name = ""
        while self.now.kind in ("letter", "text"):
            name += self.take().text
        self.expect("sign", "}")
        if name not in MATRICES:
            raise UnsupportedNotation(f"\\begin{{{name}}}")
        return name
