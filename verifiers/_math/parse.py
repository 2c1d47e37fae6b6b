"""Tokens -> a tree, by recursive descent with limits on depth and size. Anything outside the grammar is Unsupported.

answer  := item ((',' | ';' | and | or) item)*
item    := set (('=' | '<' | '>' | \\le | \\ge | \\ne | \\in) set)* unit?
set     := sum ((\\cup | \\cap | \\setminus) sum)*
sum     := ['+' | '-' | \\pm] term (('+' | '-' | \\pm) term)*
term    := factor (['*' | '/' | \\cdot | \\times | \\div] factor)*
factor  := atom ('^' exponent | '!' | '%' | '_' index)*
"""

from __future__ import annotations

from fractions import Fraction

from verifiers._math.lexer import SAME_COMMAND, SKIPPED, TEXT_COMMANDS, UnsupportedNotation, tokens_of
from verifiers._math.matrices import MatrixReader
from verifiers._math.names import ACCENTS, ALWAYS_APPLIED, FIGURES, GREEK, NameReader
from verifiers._math.quantities import QUANTITIES, QuantityReader, literal
from verifiers._math.tree import Node, number

RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in"}
FUNCTIONS = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp".split())
CONSTANTS = {"pi": "pi", "infty": "infty"}
SETS = {"R": "reals"}
ALL_REALS = frozenset({"all real numbers", "all reals", "the real numbers", "real numbers", "all real x"})


def parse(text: str) -> Node:
    """The tree of an answer in one spelling. Raises Unsupported."""
    reader = _Reader(tokens_of(text))
    node = reader.answer()
    reader.expect("end", "")
    return node


class _Reader(NameReader, QuantityReader, MatrixReader):
    # -- statements

    def answer(self) -> Node:
        items, joins = self.items()
        if len(items) == 1:
            return items[0]
        both = joins == ["and"] and all(item.op == "rel" for item in items)
        return self.make("list", *items, value="and" if both else None)

    def items(self) -> tuple[list[Node], list[str]]:
        """Items up to a closing sign, and the last word or sign between each and the next."""
        items, joins = [self.item()], []
        while self.sign(",", ";") or self.command("and", "or"):
            join = self.take().text
            if self.command("and", "or"):  # `1, 2, and 3`
                join = self.take().text
            joins.append(join.removeprefix("\\"))
            items.append(self.item())
        return items, joins

    def item(self) -> Node:
        parts, operators = [self.deeper(self.set_expression)], []
        if self.sign(":"):
            return self.ratio(parts[0])
        while self.sign("=", "<", ">") or (self.command() and self.now.text in RELATIONS):
            operators.append(RELATIONS[self.take().text])
            parts.append(self.deeper(self.set_expression))
        node = parts[0] if not operators else self.make("rel", *parts, value=tuple(operators))
        return self.with_unit(node)

    def ratio(self, first: Node) -> Node:
        """a : b : c, ordered and as it stands."""
        parts = [first]
        while self.sign(":"):
            self.take()
            parts.append(self.set_expression())
        if self.at("text"):
            raise UnsupportedNotation("words after a ratio, as in a time of day")
        return self.make("group", *parts, value="::")

    # -- expressions

    def set_expression(self) -> Node:
        node = self.sum()
        while self.command("cup", "cap", "setminus"):
            op = {"cup": "union", "cap": "inter", "setminus": "minus"}[self.take().text]
            node = self.make(op, node, self.sum())
        return node

    def sum(self) -> Node:
        if self.sign("+", "-") or self.command("pm", "mp"):
            first = self.signed(None)
        else:
            first = self.term()
        while self.sign("+", "-") or self.command("pm", "mp"):
            first = self.signed(first)
        return first

    def signed(self, left: Node | None) -> Node:
        """left, one sign and a term; left None for a leading sign."""
        sign = self.take().text
        if sign in ("pm", "mp"):
            return self.make("pm", left or number(0), self.term(), value=sign)
        right = self.deeper(self.sum_operand)
        if sign == "-" and left is None and right.op in QUANTITIES:  # -30 degrees is a quantity of -30
            right = self.make(right.op, self.make("neg", right.args[0]), value=right.value)
        elif sign == "-":
            right = self.make("neg", right)
        if left is None:
            return right
        return self.make("add", *(left.args if left.op == "add" else (left,)), right)

    def sum_operand(self) -> Node:
        if self.sign("+", "-"):  # 3 + -2
            return self.signed(None)
        return self.term()

    def term(self) -> Node:
        factors = [self.factor()]
        while True:
            if self.sign("*") or self.command("cdot", "times"):
                self.take()
                factors.append(self.signed(None) if self.sign("-") else self.factor())
            elif (self.sign("/") and self.peek(1).kind != "text") or self.command("div"):
                self.take()
                left = self.product(factors)
                factors = [self.make("div", left, self.factor())]
            elif self.starts_factor():
                if self.now.kind == "num" and factors[-1].op == "num":
                    factors[-1] = self.mixed_in_line(factors[-1])
                else:
                    factors.append(self.factor())
            else:
                return self.product(factors)

    def product(self, factors: list[Node]) -> Node:
        return factors[0] if len(factors) == 1 else self.make("mul", *factors)

    def mixed_in_line(self, whole: Node) -> Node:
        """`1 1/2`: two numbers side by side are a mixed number or nothing."""
        if not (self.peek(1).text == "/" and self.peek(2).kind == "num"):
            raise UnsupportedNotation("two numbers side by side")
        top = literal(self.take().text)
        self.take()
        return self.mixed(whole.value, top, literal(self.take().text))

    def mixed(self, whole: Fraction, top: Fraction, bottom: Fraction) -> Node:
        if whole.denominator != 1 or bottom == 0 or not 0 < top < bottom:
            raise UnsupportedNotation("not a mixed number")
        return self.make("mixed", value=whole + top / bottom)

    def starts_factor(self) -> bool:
        if self.pending is not None:
            return True
        token = self.now
        if token.kind in ("num", "letter"):
            return True
        if token.kind == "sign":
            return token.text in ("(", "{", "[", "\\{")
        return token.kind == "command" and (
            token.text in FUNCTIONS | GREEK | CONSTANTS.keys() | ACCENTS | FIGURES | {"frac", "sqrt", "binom", "begin"}
        )

    def factor(self) -> Node:
        node, self.pending = self.pending or self.atom(), None
        if node.op == "num" and self.command("frac") and node.value.denominator == 1:
            node = self.maybe_mixed(node)
        while self.pending is None:
            if self.command("circ"):  # 45\\degree
                self.take()
                node = self.degrees(node)
            elif self.sign("("):
                if node.op != "var":
                    break
                node = self.applied(node)
            elif self.sign("["):
                if node != Node("var", (), "E"):
                    break
                node = self.applied(node)
            elif self.sign("^", "!", "%", "_", "'"):
                node = self.with_suffix(node, self.take().text)
            else:
                break
        return node

    def with_suffix(self, node: Node, sign: str) -> Node:
        if sign == "^":
            return self.power(node)
        if sign == "_":
            return self.indexed(node)
        if sign == "'":
            if node.op != "var":
                raise UnsupportedNotation("a derivative")
            return self.make("var", value=f"{node.value}'")
        return self.make("factorial" if sign == "!" else "percent", node)

    def maybe_mixed(self, whole: Node) -> Node:
        r"""`1\frac{1}{2}` is 1 + 1/2, while `2\frac{x}{3}` is a product."""
        before = self._at
        fraction = self.factor()
        if fraction.op == "div" and all(side.op == "num" for side in fraction.args):
            top, bottom = (side.value for side in fraction.args)
            if top.denominator == bottom.denominator == 1 and 0 < top < bottom:
                return self.mixed(whole.value, top, bottom)
        self._at = before
        return whole

    def power(self, base: Node) -> Node:
        if base.op in ("percent", "degree", "unit"):
            raise UnsupportedNotation("a power of a unit")
        if self.command("circ"):
            self.take()
            return self.degrees(base)
        if self.sign("{") and self.peek(1).text == "circ":
            for _ in range(3):
                self.take()
            return self.degrees(base)
        exponent = self.deeper(self.exponent)
        if base.op == "var" and str(base.value)[0] in ALWAYS_APPLIED and self.sign("("):  # f^{-1}(3), f^2(3)
            plain = exponent.args[0] if exponent.op == "neg" else exponent
            if plain.op == "num":
                return self.make("var", value=f"{base.value}^{'-' if exponent.op == 'neg' else ''}{plain.value}")
        if self.sign("^"):
            raise UnsupportedNotation("a power of a power without braces")
        return self.make("pow", base, exponent)

    def exponent(self) -> Node:
        if self.sign("-"):
            self.take()
            return self.make("neg", self.group_or_token())
        return self.group_or_token()

    # -- atoms

    def atom(self) -> Node:
        token = self.now
        if token.kind == "num":
            return self.repeating(literal(self.take().text), token.text)
        if token.kind == "letter":
            return _letter(self.take().text)
        if token.kind == "text":
            return self.words(self.take().text)
        if token.kind == "sign":
            return self.deeper(self.bracketed)
        if token.kind == "command":
            return self.deeper(self.commanded)
        raise UnsupportedNotation(f"{token.text or 'the end'!r} instead of a value")

    def words(self, text: str) -> Node:
        if text.strip(" .").lower() in ALL_REALS:
            return self.make("const", value="reals")
        if text in ("euros", "pounds") and self.at("num"):  # a currency sign before its amount
            return self.make("unit", self.factor(), value=text.removesuffix("s"))
        return self.make("text", value=text)

    def bracketed(self) -> Node:
        opened = self.take().text
        if opened == "{":
            items, several = self.items()
            self.expect("sign", "}")
            return self.make("set", *items) if several else items[0]
        if opened == "\\{":
            return self.braced_set()
        if opened == "|":
            node = self.sum()
            self.expect("sign", "|")
            return self.make("abs", node)
        if opened not in ("(", "["):
            raise UnsupportedNotation(f"the sign {opened!r} instead of a value")
        items, several = self.items()
        if not self.sign(")", "]"):
            raise UnsupportedNotation("a bracket that does not close")
        closed = self.take().text
        if several:
            return self.make("group", *items, value=opened + closed)
        if opened + closed not in ("()", "[]") or items[0].op == "rel":
            raise UnsupportedNotation("brackets that do not match")
        return items[0]

    def braced_set(self) -> Node:
        r"""`\{1, 2\}`, or a set by its condition: `\{x \mid x > 2\}`, `\{x \in \mathbb{R} : x \ne 2\}`."""
        if self.sign("\\}"):
            self.take()
            return self.make("set")
        if self.now.kind in ("letter", "command") and (self.peek(1).text in ("|", ":", "in")):
            return self.set_by_condition()
        items, _ = self.items()
        self.expect("sign", "\\}")
        return self.make("set", *items)

    def set_by_condition(self) -> Node:
        name = self.atom()
        domain = self.make("const", value="reals")
        if self.command("in"):
            self.take()
            domain = self.set_expression()
        if name.op != "var" or not self.sign("|", ":"):
            raise UnsupportedNotation("a set that is neither listed nor described")
        self.take()
        conditions, joins = self.items()
        self.expect("sign", "\\}")
        if "or" in joins and len(set(joins)) > 1:
            raise UnsupportedNotation("a condition of both `and` and `or`")
        joined = "or" if "or" in joins else "and"
        return self.make("where", name, domain, *conditions, value=joined)

    def commanded(self) -> Node:
        name = self.take().text
        if name == "frac":
            return self.make("div", self.group_or_token(), self.group_or_token())
        if name == "binom":
            return self.make("call", self.group_or_token(), self.group_or_token(), value="binom")
        if name == "sqrt":
            return self.root()
        if name in CONSTANTS:
            return self.make("const", value=CONSTANTS[name])
        if name in GREEK:
            return self.make("var", value=name)
        if name in FUNCTIONS:
            return self.function(name)
        if name == "emptyset":
            return self.make("set")
        if name == "mathbb":
            letter = str(self.group_or_token().value)
            if letter in SETS:
                return self.make("const", value=SETS[letter])
            return self.make("var", value=letter if letter in ("E", "P") else f"the set {letter}")
        if name in ACCENTS or name in FIGURES:
            return self.marked(name)
        if name == "begin":
            return self.matrix()
        if name == "$":  # \$5.00
            return self.make("unit", self.signed(None) if self.sign("-") else self.factor(), value="dollar")
        raise UnsupportedNotation(f"\\{name}")

    def root(self) -> Node:
        degree: Node | None = None
        if self.sign("["):
            self.take()
            degree = self.sum()
            self.expect("sign", "]")
        radicand = self.group_or_token()
        return self.make("call", radicand, *([degree] if degree else []), value="sqrt")

    def function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        while self.sign("^", "_"):
            if self.take().text == "^":
                exponent = self.deeper(self.exponent)
            else:
                base = self.group_or_token()
        if base is not None and name != "log":
            raise UnsupportedNotation(f"a base under \\{name}")
        argument = self.factor() if self.sign("(", "{", "[") else self.argument()
        if name == "exp":
            call = self.make("pow", self.make("const", value="e"), argument)
            return call if exponent is None else self.make("pow", call, exponent)
        call = self.make("call", argument, *([base] if base else []), value=name)
        if exponent is None:
            return call
        if exponent == Node("neg", (number(1),)) and name in ("sin", "cos", "tan") and base is None:
            return self.make("call", argument, value=f"arc{name}")
        if exponent.op != "num" or exponent.value <= 0:
            raise UnsupportedNotation("an inverse function written as a power")
        return self.make("pow", call, exponent)

    def argument(self) -> Node:
        """What a function without brackets takes: the factors up to the next operator or function."""
        factors = [self.signed(None) if self.sign("-") else self.factor()]
        while self.starts_factor() and not (self.now.kind == "command" and self.now.text in FUNCTIONS):
            factors.append(self.factor())
        return self.product(factors)

    def group_or_token(self) -> Node:
        r"""What \frac, ^ and \sqrt take: braces, or the one thing that follows."""
        return self.atom()


def _letter(letter: str) -> Node:
    return Node("const", (), letter) if letter in ("e", "i") else Node("var", (), letter)


_OTHER_COMMANDS = "frac sqrt binom begin end cup cap setminus cdot times div pm mp dot ldots emptyset mathbb".split()
KNOWN_COMMANDS = frozenset(
    "\\" + name
    for names in (
        RELATIONS, FUNCTIONS, CONSTANTS, GREEK, ACCENTS, FIGURES, SKIPPED, SAME_COMMAND, SAME_COMMAND.values(),
        TEXT_COMMANDS, _OTHER_COMMANDS,
    )
    for name in names
)  # fmt: skip
