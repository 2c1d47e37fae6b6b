"""Names and what they are applied to: x_1, f(0), P(A|B), angle ABC, vector v."""

from __future__ import annotations

from collections.abc import Callable

from verifiers._math.cursor import Cursor
from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.quantities import is_literal
from verifiers._math.tree import Node

GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega"
    " Gamma Delta Theta Lambda Sigma Phi Psi Omega ell".split()
)
ACCENTS = frozenset("vec hat bar overline overrightarrow overleftrightarrow widehat tilde widetilde".split())
FIGURES = frozenset("angle triangle measuredangle".split())
ALWAYS_APPLIED = frozenset("fgh")
OFTEN_APPLIED = frozenset("FGHPQE")


class NameReader(Cursor):
    items: Callable[[], tuple[list[Node], list[str]]]
    group_or_token: Callable[[], Node]
    pending: Node | None = None  # a bracket after a name that turned out to be a factor of its own

    def applied(self, name: Node) -> Node:
        """`f(0)` is a value of f, `x(x+1)` a product, whose bracket is left in `pending`."""
        opened = self.take().text
        items, several = self.items()
        if self.sign("|"):  # P(A|B)
            self.take()
            given, _ = self.items()
            items, several = [*items, *given], [*several, "|"]
        self.expect("sign", ")" if opened == "(" else "]")
        if several or _is_function(str(name.value), items[0], opened, name):
            return self.make("apply", *items, value=name.value)
        self.pending = items[0]
        return name

    def indexed(self, node: Node) -> Node:
        """x_1 is a variable of that name; 1011_2 a number with its base."""
        index = self.group_or_token()
        if index.op not in ("num", "var"):
            raise UnsupportedNotation("an index that is no number or letter")
        if node.op == "num" and index.op == "num" and node.value.denominator == 1:
            return self.make("base", value=(str(node.value), str(index.value)))
        if node.op == "var":
            return self.make("var", value=f"{node.value}_{index.value}")
        raise UnsupportedNotation("an index on what is no number or variable")

    def marked(self, name: str) -> Node:
        r"""`\vec{v}`, `\overline{AB}` or `\angle ABC`: a name made of letters."""
        letters = ""
        braced = self.sign("{")
        if braced:
            self.take()
        while self.now.kind == "letter" or (braced and (self.sign("_") or (letters and self.at("num")))):
            letters += self.take().text
            if not braced and name in ACCENTS:
                break
        if not letters and self.now.kind == "command" and self.now.text in GREEK:
            letters = self.take().text
        if braced:
            self.expect("sign", "}")
        if not letters:
            raise UnsupportedNotation(f"\\{name} of what is no name")
        return self.make("var", value=f"{name} {letters}")


def _is_function(letter: str, argument: Node, opened: str, name: Node) -> bool:
    """f, g, h and their derivatives always are; any letter is before a plain number or another single letter."""
    if letter[0] in ALWAYS_APPLIED or letter.endswith("'") or opened == "[":
        return True
    if is_literal(argument) or argument.op in ("rel", "union", "inter", "minus"):
        return True
    return (argument.op == "var" and argument != name) or (letter[0] in OFTEN_APPLIED and argument.op == "apply")
