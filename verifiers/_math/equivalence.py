r"""Whether an answer means what the gold means, in the form of an answer.

Equal is not enough: `\sum_{k=1}^{100} k` equals 5050 and is the question. So, beside the value:
  - a gold that is a plain rational number wants a number: no sums, products or functions left to work out,
    scientific notation, fractions, powers and roots excepted;
  - a gold that is a product of polynomials wants its factors, else `factor x^2-1` is answered by `x^2-1`;
  - an answer brings no function, no variable and no variable denominator that the gold does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.naming import value_of, without_names
from verifiers._math.number import constant, equal_everywhere, proportional
from verifiers._math.quantities import QUANTITIES
from verifiers._math.region import FLIPPED, looks_like_region, region, region_variables, same_region
from verifiers._math.tree import Node, number, variables
from verifiers._math.vectors import scaled_matrix

MAX_ITEMS = 60
MAX_PLUS_MINUS = 8
TEMPERATURES = frozenset({"celsius", "fahrenheit"})
FAMILIES = {name: "trigonometric" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}
FAMILIES |= {name: "inverse trigonometric" for name in ("arcsin", "arccos", "arctan")}
FAMILIES |= {name: "logarithm" for name in ("log", "ln", "lg")}
FAMILIES |= {"binom": "combinatorial"}
NUMBER_OPS = frozenset({"num", "mixed", "neg", "div", "pow", "percent", "call", "base"})


def same_answer(gold: Node, answer: Node) -> bool:
    """Raises Unsupported if one of them is outside what can be compared."""
    gold, answer = _prepared(gold), _prepared(answer)
    gold, answer = without_names(gold, answer)
    if gold.op == "unit" or answer.op in ("unit", "percent", "degree") or gold.op in ("percent", "degree"):
        return _same_quantity(gold, answer)
    if "text" in (gold.op, answer.op) or "base" in (gold.op, answer.op):
        return (gold.op == answer.op == "base" and gold.value == answer.value) or _same_digits(gold, answer)
    if looks_like_region(gold) or looks_like_region(answer):
        return _same_region(gold, answer)
    if gold.op == "rel" or answer.op == "rel":
        return _same_relation(gold, answer)
    if gold.op in ("list", "set") or answer.op in ("list", "set"):
        return _same_collection(gold, answer)
    if gold.op in ("group", "matrix") or answer.op in ("group", "matrix"):
        shape = gold.op == answer.op and gold.value == answer.value and len(gold.args) == len(answer.args)
        return shape and all(same_answer(g, a) for g, a in zip(gold.args, answer.args, strict=True))
    return _same_expression(gold, answer)


def _same_digits(gold: Node, answer: Node) -> bool:
    """`2516` for the gold `2516_8`: the question names the base, so an answer may leave it out."""
    plain = answer.op == "num" and answer.value.denominator == 1
    return gold.op == "base" and plain and gold.value[0] == str(answer.value)


def _prepared(node: Node) -> Node:
    """Each plus-minus as both its values, and a scalar times a matrix as the matrix."""
    return scaled_matrix(_outward(_plus_minus(node)))


def _plus_minus(node: Node) -> Node:
    """a ± b as the list of both, also within a list or a set."""
    if not node.has("pm"):
        return node
    if sum(part.op == "pm" for part in node.walk()) > MAX_PLUS_MINUS:
        raise UnsupportedNotation("too many plus-minus signs")
    if node.op in ("list", "set"):
        items = [item for arg in node.args for item in _both_values(arg)]
        return Node(node.op, tuple(items), node.value)
    return Node("list", tuple(_both_values(node)))


def _both_values(node: Node) -> list[Node]:
    return [_signed(node, "pm"), _signed(node, "mp")] if node.has("pm") else [node]


def _outward(node: Node) -> Node:
    """A sign within a quantity: minus (30 degrees) is (minus 30) degrees."""
    if node.op in ("list", "set", "group"):
        return Node(node.op, tuple(_outward(arg) for arg in node.args), node.value)
    if node.op == "neg" and node.args[0].op in QUANTITIES:
        inner = node.args[0]
        return Node(inner.op, (Node("neg", inner.args),), inner.value)
    return node


def _signed(node: Node, plus: str) -> Node:
    args = tuple(_signed(arg, plus) for arg in node.args)
    if node.op != "pm":
        return Node(node.op, args, node.value)
    right = args[1] if node.value == plus else Node("neg", (args[1],))
    return right if args[0] == number(0) else Node("add", (args[0], right))


# -- units


def _same_quantity(gold: Node, answer: Node) -> bool:
    """Values with a unit, in degrees or in percent. Units must agree where both have one."""
    if gold.op == answer.op == "percent":
        return same_answer(gold.args[0], answer.args[0])
    if "percent" in (gold.op, answer.op):
        return _same_percentage(gold, answer)
    units = {node.value if node.op == "unit" else "degree" for node in (gold, answer) if node.op in ("unit", "degree")}
    if "degree" in units and units & TEMPERATURES:  # 37 degrees, and 37 degrees Celsius
        units.discard("degree")
    bare = [node.args[0] if node.op in ("unit", "degree") else node for node in (gold, answer)]
    return len(units) == 1 and same_answer(bare[0], bare[1])


def _same_percentage(gold: Node, answer: Node) -> bool:
    """25% beside a bare number: 0.25, and 25 too, as that can be no share (it is more than 1)."""
    percent, other = (gold, answer) if gold.op == "percent" else (answer, gold)
    if other.op in ("unit", "degree", "list", "set", "group", "matrix", "rel", "text", "base"):
        return False
    share = _rational(percent.args[0])
    readings = [share / 100, share] if abs(share) > 1 else [share / 100]
    numbers = [Node("mixed", (), reading) for reading in readings]
    return any(_same_expression(n, answer) if percent is gold else _same_expression(gold, n) for n in numbers)


def _rational(node: Node) -> Fraction:
    value, _ = constant(node)
    if not isinstance(value, Fraction):
        raise UnsupportedNotation("a percentage that is not rational")
    return value


# -- collections, regions, relations


def _same_collection(gold: Node, answer: Node) -> bool:
    """Lists and sets, in any order; a set holds each value once."""
    if gold.op not in ("list", "set") or answer.op not in ("list", "set"):
        return False
    wanted, given = list(gold.args), list(answer.args)
    if max(len(wanted), len(given)) > MAX_ITEMS:
        raise UnsupportedNotation("a collection too large to compare")
    if len(wanted) != len(given):
        return False
    return _matched(wanted, given, same_answer)


def _matched(wanted: Sequence[Node], given: list[Node], same: Callable[[Node, Node], bool]) -> bool:
    """Whether each wanted node has a given one of its own. Equality is transitive, so the first match will do."""
    left = list(given)
    for node in wanted:
        for i, candidate in enumerate(left):
            if same(node, candidate):
                del left[i]
                break
        else:
            return False
    return True


def _same_region(gold: Node, answer: Node) -> bool:
    """Regions of the line; where one is none, inequalities side by side."""
    names = region_variables(gold), region_variables(answer)
    if all(names) and names[0] != names[1]:  # y > 3 is not x > 3
        return False
    try:
        return same_region(region(gold), region(answer))
    except UnsupportedNotation:
        if gold.op == answer.op == "rel":
            return _same_relation(gold, answer)
        if gold.op == answer.op and gold.op in ("union", "inter", "minus", "list"):
            return len(gold.args) == len(answer.args) and _matched(gold.args, list(answer.args), same_answer)
        return False


def _same_relation(gold: Node, answer: Node) -> bool:
    if gold.op != "rel" or answer.op != "rel" or len(gold.value) != 1 or len(answer.value) != 1:
        return False
    (gold_op,), (answer_op,) = gold.value, answer.value
    if gold_op == answer_op == "=":
        if any(side.op in ("group", "matrix", "set") for side in (*gold.args, *answer.args)):
            return all(same_answer(g, a) for g, a in zip(gold.args, answer.args, strict=True))
        if not variables(gold):
            return False
        if value_of(gold) and not variables(value_of(gold)[1]):  # type: ignore[index]
            return False  # x = 3 wants x = 3, and got here because it did not get it
        return variables(gold) == variables(answer) and proportional(_difference(gold), _difference(answer))
    sides = list(answer.args)
    if gold_op != answer_op and FLIPPED.get(gold_op) == answer_op:
        sides.reverse()
    elif gold_op != answer_op:
        return False
    return all(same_answer(g, a) for g, a in zip(gold.args, sides, strict=True))


def _difference(node: Node) -> Node:
    return Node("add", (node.args[0], Node("neg", (node.args[1],))))


# -- expressions


def _same_expression(gold: Node, answer: Node) -> bool:
    infinities = [_infinity(node) for node in (gold, answer)]
    if any(infinities):
        return infinities[0] == infinities[1]
    if not variables(answer) <= variables(gold) or not _families(answer) <= _families(gold):
        return False
    if not variables(gold):
        if not _is_worked_out(gold, answer):
            return False
    elif _factors(gold) > max(1, _factors(answer)) or (
        _divides_by_variable(answer) and not _divides_by_variable(gold) and "combinatorial" not in _families(gold)
    ):
        return False
    return equal_everywhere(gold, answer)


def _infinity(node: Node) -> int:
    if node.op == "neg":
        return -_infinity(node.args[0])
    return int(node.op == "const" and node.value == "infty")


def _families(node: Node) -> frozenset[str]:
    found = {FAMILIES[part.value] for part in node.walk() if part.op == "call" and part.value in FAMILIES}
    found |= {f"function {part.value}" for part in node.walk() if part.op == "apply"}
    return frozenset(found | {"combinatorial" for part in node.walk() if part.op == "factorial"})


def _divides_by_variable(node: Node) -> bool:
    return any(
        (part.op == "div" and variables(part.args[1]))
        or (part.op == "pow" and variables(part.args[0]) and part.args[1].op == "neg")
        for part in node.walk()
    )


def _is_worked_out(gold: Node, answer: Node) -> bool:
    """Whether a constant is given as an answer and not as the sum to be done."""
    if _is_scientific(answer):
        return True
    if _is_plain(gold):
        return all(part.op in NUMBER_OPS for part in answer.walk())
    if _is_prime_product(gold) and _is_plain(answer):
        return False
    return gold.has("add") or not answer.has("add")


def _is_plain(node: Node) -> bool:
    """A number as one writes it: 3, -3/4, 1 1/2, 2^10."""
    return all(part.op in NUMBER_OPS and part.op != "call" for part in node.walk()) or _is_scientific(node)


def _is_scientific(node: Node) -> bool:
    if node.op == "neg":
        return _is_scientific(node.args[0])
    if node.op != "mul" or len(node.args) != 2:
        return False
    digits, power = node.args
    return digits.op in ("num", "neg") and power.op == "pow" and power.args[0] == number(10)


def _is_prime_product(node: Node) -> bool:
    """2^3 · 5: a factorization into different primes, which the product itself does not answer."""
    if node.op != "mul":
        return False
    bases = [factor.args[0] if factor.op == "pow" else factor for factor in node.args]
    values = [base.value for base in bases if base.op == "num" and base.value.denominator == 1]
    return len(values) == len(bases) == len(set(values)) and all(_is_small_prime(int(v)) for v in values)


def _is_small_prime(n: int) -> bool:
    return 2 <= n < 10_000 and all(n % d for d in range(2, int(n**0.5) + 1))


def _factors(node: Node) -> int:
    """How many factors with variables a product shows; 1 for anything that is no product with a sum in it."""
    if node.op == "neg":
        return _factors(node.args[0])
    if not _has_sum_factor(node):
        return 1
    return _count_factors(node)


def _has_sum_factor(node: Node) -> bool:
    if node.op == "mul":
        return any(_has_sum_factor(arg) for arg in node.args)
    if node.op == "pow":
        return _has_sum_factor(node.args[0]) and node.args[1].op == "num"
    return node.op == "add" and bool(variables(node))


def _count_factors(node: Node) -> int:
    if node.op == "neg":
        return _count_factors(node.args[0])
    if node.op == "mul":
        return sum(_count_factors(arg) for arg in node.args)
    if node.op == "pow" and node.args[1].op == "num" and variables(node.args[0]):
        exponent = node.args[1].value
        return min(int(exponent), 1000) * _count_factors(node.args[0]) if exponent >= 1 else 1
    return 1 if variables(node) else 0
