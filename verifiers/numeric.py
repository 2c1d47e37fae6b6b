"""A number against a gold number, within a stated tolerance; exact by default.

The answer is the last box, or else a last line `The answer is ...` or `#### ...`; never just some number in the text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import NotRequired, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed
from verifiers._math.lexer import Unsupported
from verifiers._math.number import constant, is_real
from verifiers._math.parse import parse
from verifiers._math.text import final_answer, one_spelling, unboxed, unreadable
from verifiers._math.tree import Node
from verifiers._math.units import unit_name


class Task(TypedDict):
    gold: str | float
    atol: NotRequired[float]  # |answer - gold| may be this large, or
    rtol: NotRequired[float]  # this share of |gold|; both default to 0
    unit: NotRequired[str]  # a unit in the answer must be this one; without it any unit is ignored


def _number(text: str) -> tuple[Node, Fraction]:
    """The tree and the value, as close to a rational as 50 digits go. Raises Unsupported."""
    tree = parse(one_spelling(text))
    if tree.op == "rel" and tree.value == ("=",) and tree.args[0].op == "var":
        tree = tree.args[1]
    inner = tree.args[0] if tree.op in ("unit", "degree") else tree
    if inner.has("add", "mul", "pm", "list", "factorial") and not _is_written_out(inner):
        raise Unsupported("an expression, not a number")
    value, walk = constant(inner)
    if not is_real(value, walk):
        raise Unsupported("not a real number")
    return tree, value if isinstance(value, Fraction) else Fraction(str(value.real))


def _is_written_out(node: Node) -> bool:
    """3 x 10^5, or a multiple of pi or of a root."""
    return node.op in ("mul", "neg", "div", "num", "mixed", "const", "pow", "call") and all(
        _is_written_out(arg) for arg in node.args
    )


def read_gold(gold: object) -> Fraction:
    """The gold's value. Raises ValueError for null, NaN, a list, a struct, and text that is no number."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float | Fraction):
        raise ValueError(f"the gold {gold!r:.60} is not a number")
    try:
        return _number(unboxed(str(gold)))[1]
    except Unsupported as exc:
        raise ValueError(f"the gold {str(gold)[:60]!r} is not a number: {exc}") from None


def verify(completion: str, task: Task) -> Verdict:
    gold = read_gold(task["gold"])
    atol, rtol = Fraction(str(task.get("atol", 0))), Fraction(str(task.get("rtol", 0)))
    if atol < 0 or rtol < 0:
        raise ValueError(f"a tolerance below 0: atol {atol}, rtol {rtol}")
    answer = final_answer(completion, box_needed=False)
    if not answer:
        return malformed("no final answer")
    if reason := unreadable(answer):
        return malformed(f"the answer: {reason}")
    try:
        tree, value = _number(answer)
        unit = tree.value if tree.op == "unit" else "degree" if tree.op == "degree" else None
        if unit is not None and "unit" in task and unit != unit_name(task["unit"]):
            return failed(f"in {unit}, not in {task['unit']}")
    except Unsupported as exc:
        return malformed(f"no number: {exc}")
    return passed() if abs(value - gold) <= max(atol, rtol * abs(gold)) else failed("outside the tolerance")


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """Answers just within and just beyond the tolerance."""
    task = example.task
    _, gold = _number(str(task["gold"]))
    slack = max(Fraction(str(task.get("atol", 0))), Fraction(str(task.get("rtol", 0))) * abs(gold))
    for sign in (-1, 1):
        inside, outside = gold + sign * slack, gold + sign * (slack + Fraction(1, 10 ** rng.randint(1, 9)))
        yield Example("right", rf"\boxed{{\frac{{{inside.numerator}}}{{{inside.denominator}}}}}", task)
        yield Example("wrong", rf"\boxed{{\frac{{{outside.numerator}}}{{{outside.denominator}}}}}", task)
    yield Example("malformed", f"{gold} is what I found first, then I gave up", task)


_G = {"gold": "9.81", "atol": 0.01, "unit": "m/s"}
EXAMPLES = (
    Example("right", r"So \boxed{9.80}.", _G),
    Example("right", "v = 2\nThe answer is 9.81 m/s.", _G),
    Example("right", r"\boxed{1.2\times 10^{-3}}", {"gold": 0.0012}),
    Example("right", r"\boxed{\pi}", {"gold": 3.14159, "rtol": 1e-5}),
    Example("right", "#### 1,234", {"gold": 1234}),
    Example("wrong", r"\boxed{9.83}", _G),
    Example("wrong", r"\boxed{9.81 km/h}", _G),
    Example("wrong", r"\boxed{0.00120001}", {"gold": 0.0012}),
    Example("malformed", "9.81", _G),
    Example("malformed", "See section 9.81", _G),
    Example("malformed", r"\boxed{about 9.81 or so}", _G),
    Example("hostile", r"\boxed{9.7, 9.8, 9.81}", _G),
    Example("hostile", r"\boxed{9.81 \pm 100}", _G),
    Example("hostile", r"\boxed{5 + 4.81}", _G),
    Example("hostile", r"\boxed{nan}", _G),
    Example("hostile", r"\boxed{\infty}", _G),
    Example("hostile", r"\boxed{1e999999}", _G),
)
