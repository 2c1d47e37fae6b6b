"""A number against a gold number, within a stated tolerance; exact by default.

The answer is the last box, or else a last line `The answer is ...` or `#### ...`; never just some number in the text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NotRequired, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed
from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.naming import value_of
from verifiers._math.number import constant, is_real
from verifiers._math.parse import parse
from verifiers._math.text import boxed_content, final_answer, no_answer, one_spelling, unreadable
from verifiers._math.tree import Node
from verifiers._math.units import unit_name


class SeveralNumbers(UnsupportedNotation):
    """A list such as `72 or 73`: readable, and no answer to a question for one number."""


_APPROXIMATELY = re.compile(r"^(?:\\approx|\\sim(?:eq)?|~|about|approximately|approx\.?)\s*")


class Task(TypedDict):
    gold: str | float
    atol: NotRequired[float]  # |answer - gold| may be this large, or
    rtol: NotRequired[float]  # this share of |gold|; both default to 0
    unit: NotRequired[str]  # a unit in the answer must be this one; without it any unit is ignored


def _number(text: str) -> tuple[Node, Fraction]:
    """The tree and the value, as close to a rational as 50 digits go. Raises UnsupportedNotation."""
    tree = parse(text)
    if tree.op == "rel" and tree.value == ("=",) and (named := value_of(tree)):
        tree = named[1]
    inner = tree.args[0] if tree.op in ("unit", "degree", "percent") else tree
    if inner.op in ("list", "set", "pm"):
        raise SeveralNumbers("more than one number")
    if inner.has("apply"):
        raise UnsupportedNotation("a value of an unknown function")
    if inner.has("add", "mul", "pm", "list", "factorial") and not _is_written_out(inner):
        raise UnsupportedNotation("an expression, not a number")
    value, walk = constant(inner)
    if not is_real(value, walk):
        raise UnsupportedNotation("not a real number")
    return tree, value if isinstance(value, Fraction) else Fraction(str(value.real))


def _is_written_out(node: Node) -> bool:
    """3 x 10^5, or a multiple of pi or of a root."""
    return node.op in ("mul", "neg", "div", "num", "mixed", "const", "pow", "call") and all(
        _is_written_out(arg) for arg in node.args
    )


def read_gold(gold: object) -> tuple[Node, Fraction]:
    """The gold's tree and value. Raises ValueError for null, NaN, a list, a struct, and text that is no number."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float | Fraction):
        raise ValueError(f"the gold {gold!r:.60} is not a number")
    try:
        return _number(one_spelling(boxed_content(str(gold))))
    except UnsupportedNotation as exc:
        raise ValueError(f"the gold {str(gold)[:60]!r} is not a number: {exc}") from None


def _task_unit(task: Task) -> str | None:
    """The one name of the task's unit. Raises ValueError for words that are no unit."""
    unit = task.get("unit")
    return None if unit is None else unit.strip() if unit.strip() in ("%", "percent") else unit_name(one_spelling(unit))


def verify(completion: str, task: Task) -> Verdict:
    gold_tree, gold = read_gold(task["gold"])
    atol, rtol = Fraction(str(task.get("atol", 0))), Fraction(str(task.get("rtol", 0)))
    if atol < 0 or rtol < 0:
        raise ValueError(f"a tolerance below 0: atol {atol}, rtol {rtol}")
    unit = _task_unit(task)
    answer = final_answer(completion, box_needed=False)
    if not answer:
        return malformed(no_answer(completion, box_needed=False))
    if reason := unreadable(answer):
        return malformed(f"the answer: {reason}")
    text = one_spelling(answer)
    if atol or rtol:
        text = _APPROXIMATELY.sub("", text)
    try:
        tree, value = _number(text)
    except SeveralNumbers as exc:
        return failed(str(exc))
    except UnsupportedNotation as exc:
        return malformed(f"no number: {exc}")
    if not _unit_agrees(tree, unit):
        return failed(f"not in {task['unit']}")
    golds, answers = [gold], [value]
    if (gold_tree.op == "percent") != (tree.op == "percent"):
        golds, answers = _shares(gold_tree, gold), _shares(tree, value)
    near = any(abs(a - g) <= max(atol, rtol * abs(g)) for a in answers for g in golds)
    return passed() if near else failed("outside the tolerance")


def _shares(tree: Node, value: Fraction) -> list[Fraction]:
    """25% is 0.25, and 25 too, as that can be no share (it is more than 1); math_answer reads it the same way."""
    if tree.op != "percent":
        return [value]
    return [value / 100, value] if abs(value) > 1 else [value / 100]


def _unit_agrees(tree: Node, unit: str | None) -> bool:
    """Whether the unit of an answer is the task's; an answer may leave it out, and a task may ask for none."""
    if unit is None or tree.op not in ("unit", "degree", "percent"):
        return True
    if tree.op == "degree":
        return unit in ("degree", "celsius", "fahrenheit")
    return unit in ("%", "percent") if tree.op == "percent" else tree.value == unit


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """Answers just within and just beyond the tolerance."""
    task = example.task
    _, gold = read_gold(task["gold"])
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
