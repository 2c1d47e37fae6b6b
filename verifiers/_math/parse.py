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

from verifiers._math.cursor import Cursor
from verifiers._math.lexer import SAME_COMMAND, SKIPPED, TEXT_COMMANDS, Token, Unsupported, tokens_of
from verifiers._math.tree import Node, number
from verifiers._math.units import MULTIPLIERS, unit_name

RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in"}
FUNCTIONS = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp".split())
CONSTANTS = {"pi": "pi", "infty": "infty"}
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega"
    " Gamma Delta Theta Lambda Sigma Phi Psi Omega ell".split()
)
SETS = {"R": "reals"}
MATRICES = frozenset("pmatrix bmatrix Bmatrix vmatrix matrix array".split())


def parse(text: str) -> Node:
    """The tree of an answer in one spelling. Raises Unsupported."""
    reader = _Reader(tokens_of(text))
    node = reader.answer()
    reader.expect("end", "")
    return node


class _Reader(Cursor):
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
            raise Unsupported("words after a ratio, as in a time of day")
        return self.make("group", *parts, value="::")

    def with_unit(self, node: Node) -> Node:
        r"""`10\text{ cm}^2`: words after a value are its unit, if they are the kind of words units are."""
        if not self.at("text"):
            return node
        if node.op == "text":
            raise Unsupported("text after text")
        words = self.take().text
        if node.op == "rel":
            *sides, last = node.args
            return self.make("rel", *sides, self.scaled(last, words), value=node.value)
        return self.scaled(node, words)

    def scaled(self, node: Node, words: str) -> Node:
        if node.op in ("percent", "degree", "unit"):
            raise Unsupported("a unit after a unit")
        first, *rest = words.lower().split()
        if first in MULTIPLIERS:
            node = self.make("mixed", value=node.value * MULTIPLIERS[first]) if node.op == "num" else self.refuse(words)
            words = " ".join(rest)
            if not words:
                return node
        if words.lower() == "percent":
            return self.make("percent", node)
        power = ""
        if self.sign("^"):
            self.take()
            exponent = self.group_or_token()
            if exponent.op != "num":
                raise Unsupported("a unit with a strange exponent")
            power = f"^{exponent.value}"
        return self.make("unit", node, value=unit_name(words + power))

    def refuse(self, what: str) -> Node:
        raise Unsupported(what)

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
        if sign == "-":
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
            elif self.sign("/") or self.command("div"):
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
            raise Unsupported("two numbers side by side")
        top = _literal(self.take())
        self.take()
        return self.mixed(whole.value, top, _literal(self.take()))

    def mixed(self, whole: Fraction, top: Fraction, bottom: Fraction) -> Node:
        if whole.denominator != 1 or bottom == 0 or not 0 < top < bottom:
            raise Unsupported("not a mixed number")
        return self.make("mixed", value=whole + top / bottom)

    def starts_factor(self) -> bool:
        token = self.now
        if token.kind in ("num", "letter"):
            return True
        if token.kind == "sign":
            return token.text in ("(", "{", "[", "\\{")
        return token.kind == "command" and (
            token.text in FUNCTIONS | GREEK | CONSTANTS.keys() | {"frac", "sqrt", "binom", "overline", "begin"}
        )

    def factor(self) -> Node:
        node = self.atom()
        if node.op == "num" and self.command("frac") and node.value.denominator == 1:
            node = self.maybe_mixed(node)
        while self.sign("^", "!", "%", "_", "'"):
            sign = self.take().text
            if sign == "^":
                node = self.power(node)
            elif sign == "_":
                node = self.indexed(node)
            elif sign == "'":
                raise Unsupported("a derivative")
            else:
                node = self.make("factorial" if sign == "!" else "percent", node)
        return node

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
            raise Unsupported("a power of a unit")
        if self.command("circ"):
            self.take()
            return self.make("degree", base)
        if self.sign("{") and self.peek(1).text == "circ":
            for _ in range(3):
                self.take()
            return self.make("degree", base)
        exponent = self.deeper(self.exponent)
        if self.sign("^"):
            raise Unsupported("a power of a power without braces")
        return self.make("pow", base, exponent)

    def exponent(self) -> Node:
        if self.sign("-"):
            self.take()
            return self.make("neg", self.group_or_token())
        return self.group_or_token()

    def indexed(self, node: Node) -> Node:
        """x_1 is a variable of that name; 1011_2 a number with its base."""
        index = self.group_or_token()
        if index.op not in ("num", "var"):
            raise Unsupported("an index that is no number or letter")
        if node.op == "num" and index.op == "num" and node.value.denominator == 1:
            return self.make("base", value=(str(node.value), str(index.value)))
        if node.op == "var":
            return self.make("var", value=f"{node.value}_{index.value}")
        raise Unsupported("an index on what is no number or variable")

    # -- atoms

    def atom(self) -> Node:
        token = self.now
        if token.kind == "num":
            return self.repeating(_literal(self.take()), token.text)
        if token.kind == "letter":
            return _letter(self.take().text)
        if token.kind == "text":
            return self.make("text", value=self.take().text)
        if token.kind == "sign":
            return self.deeper(self.bracketed)
        if token.kind == "command":
            return self.deeper(self.commanded)
        raise Unsupported(f"{token.text or 'the end'!r} where a value belongs")

    def repeating(self, value: Fraction, text: str) -> Node:
        r"""`0.1\overline{6}`: the digits under the line go on for ever."""
        if "." not in text or not self.command("overline"):
            return number(value)
        self.take()
        digits = self.group_or_token_text()
        if not digits.isdigit() or len(digits) > 20:
            raise Unsupported("a line over what is no row of digits")
        decimals = len(text.partition(".")[2])
        return number(value + Fraction(int(digits), (10 ** len(digits) - 1) * 10**decimals))

    def group_or_token_text(self) -> str:
        self.expect("sign", "{")
        text = self.take().text
        self.expect("sign", "}")
        return text

    def bracketed(self) -> Node:
        opened = self.take().text
        if opened == "{":
            node = self.item()
            self.expect("sign", "}")
            return node
        if opened == "\\{":
            if self.sign("\\}"):
                self.take()
                return self.make("set")
            items, _ = self.items()
            self.expect("sign", "\\}")
            return self.make("set", *items)
        if opened == "|":
            node = self.sum()
            self.expect("sign", "|")
            return self.make("abs", node)
        if opened not in ("(", "["):
            raise Unsupported(f"the sign {opened!r} where a value belongs")
        items, several = self.items()
        if not self.sign(")", "]"):
            raise Unsupported("a bracket that does not close")
        closed = self.take().text
        if several:
            return self.make("group", *items, value=opened + closed)
        if opened + closed not in ("()", "[]") or items[0].op == "rel":
            raise Unsupported("brackets that do not match")
        return items[0]

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
        if name == "mathbb" and (letter := self.group_or_token()).value in SETS:
            return self.make("const", value=SETS[letter.value])
        if name == "begin":
            return self.matrix()
        if name == "$":  # \$5.00
            return self.make("unit", self.factor(), value="dollar")
        raise Unsupported(f"\\{name}")

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
            raise Unsupported(f"a base under \\{name}")
        argument = self.factor() if self.sign("(", "{", "[") else self.argument()
        call = self.make("call", argument, *([base] if base else []), value=name)
        if exponent is None:
            return call
        if exponent == Node("neg", (number(1),)) and name in ("sin", "cos", "tan") and base is None:
            return self.make("call", argument, value=f"arc{name}")
        if exponent.op != "num" or exponent.value <= 0:
            raise Unsupported("an inverse function written as a power")
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

    def matrix(self) -> Node:
        kind = self.environment()
        if kind == "array" and self.sign("{"):  # the column layout
            while not self.sign("}"):
                if self.at("end"):
                    raise Unsupported("an array that does not end")
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
            raise Unsupported("a matrix that ends as another")
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) != 1:
            raise Unsupported("a matrix with rows of different length")
        return self.make("matrix", *(cell for row in rows for cell in row), value=len(rows[0]))

    def environment(self) -> str:
        self.expect("sign", "{")
        name = ""
        while self.now.kind in ("letter", "text"):
            name += self.take().text
        self.expect("sign", "}")
        if name not in MATRICES:
            raise Unsupported(f"\\begin{{{name}}}")
        return name


def _literal(token: Token) -> Fraction:
    mantissa, _, exponent = token.text.partition("e")
    if exponent and abs(int(exponent)) > 400:
        raise Unsupported("an exponent over 400")
    return Fraction(mantissa + ("0" if mantissa.endswith(".") else "")) * Fraction(10) ** int(exponent or 0)


def _letter(letter: str) -> Node:
    return Node("const", (), letter) if letter in ("e", "i") else Node("var", (), letter)


KNOWN_COMMANDS = frozenset(
    "\\" + name
    for names in (RELATIONS, FUNCTIONS, CONSTANTS, GREEK, SKIPPED, SAME_COMMAND, SAME_COMMAND.values(), TEXT_COMMANDS)
    for name in (
        *names,
        "frac",
        "sqrt",
        "binom",
        "overline",
        "begin",
        "end",
        "cup",
        "cap",
        "cdot",
        "times",
        "div",
        "pm",
    )
)
