r"""The last \boxed{...} of a completion against a gold answer: numbers, expressions, sets, intervals, matrices, words.

Numbers are compared exactly, functions at rational points, everything by our own bounded reader (verifiers/_math/).
Only a gold outside its grammar goes to math-verify, in a process with a second of CPU. What is refused, beside wrong
values: an answer that is the question again (`\sum_{k=1}^{100} k` for 5050, `x^2-1` for `(x-1)(x+1)`), a choice of
answers (`3 \text{ or } 4`), a chain (`1=2=3`), a decimal near an exact gold, characters that do not show.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, broken, failed, malformed, passed
from verifiers._killable import Stalled
from verifiers._math import fallback
from verifiers._math.equivalence import same_answer
from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.parse import parse
from verifiers._math.text import boxed_content, final_answer, no_answer, one_spelling, plain_words, squeezed, unreadable
from verifiers._math.tree import Node

DEADLINE_S = 1.0


class Task(TypedDict):
    gold: str  # LaTeX or plain; its box, dollars and `#### ` are taken off
    box_needed: NotRequired[bool]  # default True; False also reads `The answer is ...`, `#### ...` and <answer> tags


_WORD = re.compile(r"(?=\w*[aeiouAEIOU])[A-Za-z][a-z]{2,}")
NO_GOLD = frozenset({"nan", "null", "<na>", "nat"})


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold as it is compared. fault: why only an answer of the same letters can meet it; None if values can."""

    text: str
    tree: Node | None
    fault: str | None


def read_gold(gold: Any) -> Gold:
    """Raises ValueError for a gold that is no answer at all: null, NaN, a list, a struct, or empty."""
    if not isinstance(gold, str | int | float | Fraction) or str(gold).strip().lower() in NO_GOLD:
        raise ValueError(f"the gold is {_kind(gold)}, not a text or a number")
    return _read_text(str(gold))


def _kind(gold: Any) -> str:
    names = {dict: "a struct", list: "a list", tuple: "a list", type(None): "null"}
    return names.get(type(gold), f"{gold!r:.60}")


@lru_cache(maxsize=8192)  # golds repeat: the samples of a group share one
def _read_text(gold: str) -> Gold:
    text = one_spelling(boxed_content(gold.strip().rpartition("#### ")[2]))
    if not text:
        raise ValueError("the gold is empty")
    tree = _tree(text)
    return Gold(text, tree, _fault(text, tree))


def _fault(text: str, tree: Node | None) -> str | None:
    """Why the gold cannot even be compared with itself."""
    if _same_words(text, tree, text, tree) and "\\" not in plain_words(text):
        return None  # compared as words
    if tree is None:
        if not fallback.available():
            return f"the gold {text[:80]!r} is outside the grammar; install math-verify to compare it"
        try:
            equal = fallback.equals_itself(text)
        except Stalled:
            return None  # the machine, not the gold
        return None if equal else f"the gold {text[:80]!r} is outside the grammar, and math-verify cannot compare it"
    try:
        return None if same_answer(tree, tree) else f"the gold {text[:80]!r} is not equal to itself"
    except UnsupportedNotation as exc:
        return f"the gold {text[:80]!r} cannot be compared: {exc}"


def gold_fault(task: Task) -> str | None:
    return read_gold(task["gold"]).fault


def _tree(text: str) -> Node | None:
    try:
        return parse(text)
    except UnsupportedNotation:
        return None


def verify(completion: str, task: Task) -> Verdict:
    gold = read_gold(task["gold"])
    box_needed = task.get("box_needed", True)
    answer = final_answer(completion, box_needed=box_needed)
    if not answer:
        return malformed(no_answer(completion, box_needed=box_needed))
    if reason := unreadable(answer):
        return malformed(f"the answer is {reason}" if reason.startswith("longer") else f"the answer {reason}")
    text = one_spelling(answer)
    if not text:
        return malformed("the box is empty")
    if squeezed(text) == squeezed(gold.text):
        return passed("the same text")
    if gold.fault is not None:
        return broken(gold.fault)
    tree = _tree(text)
    if _same_words(gold.text, gold.tree, text, tree):
        return passed("the same words")
    if gold.tree is None:
        return _by_math_verify(gold.text, text)
    if tree is None:
        return failed("not an expression this verifier reads")
    try:
        return passed("equal") if same_answer(gold.tree, tree) else failed("not equal")
    except UnsupportedNotation as exc:
        return failed(f"cannot be compared: {exc}")


def _same_words(gold_text: str, gold: Node | None, text: str, tree: Node | None) -> bool:
    """Words are compared where one side is words; `x` and `X` are no words, nor are `abc` and `ABC`."""
    if _WORD.fullmatch(gold_text) and _WORD.fullmatch(text) and gold_text[1:] == text[1:]:
        return gold_text[0].lower() == text[0].lower()  # odd, Odd
    if not any(side is None or side.op == "text" for side in (gold, tree)):
        return False
    if gold is not None and gold.op not in ("text", "var", "const", "mul"):
        return False
    words = plain_words(gold_text)
    return any(char.isalpha() for char in words) and words == plain_words(text)


def _by_math_verify(gold: str, answer: str) -> Verdict:
    try:
        return passed("equal, says math-verify") if fallback.equal(gold, answer) else failed("not equal")
    except Stalled as exc:
        return broken(str(exc))


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """Rewordings and near misses of a gold that is a rational number; others are left to the examples."""
    task = example.task
    try:
        value = Fraction(str(task["gold"]))
    except ValueError:
        return

    def boxed(text: str) -> str:
        return rf"So it is $\boxed{{{text}}}$."

    k = rng.randint(2, 9)
    top, bottom, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    rights = [str(value), rf"{sign}\frac{{{top}}}{{{bottom}}}", rf"{sign}\dfrac{{{k * top}}}{{{k * bottom}}}"]
    rights += [f" {value} ", rf"{value}\text{{ apples}}", f"x = {value}", rf"\boxed{{{value}}}"]
    if bottom == 1:
        rights += [f"{value}.0", f"{value}.00", f"{int(value):,}"]
    nearly = value + Fraction(rng.choice((-1, 1)), 10 ** rng.randint(0, 12))
    wrongs = [rf"\frac{{{nearly.numerator}}}{{{nearly.denominator}}}", rf"{value} \text{{ or }} {value + 1}"]
    wrongs += [f"{value}, {value + k}", f"{value} = {value + 1}", f"{value + k} = {value}", rf"{value}\pm {k}"]
    wrongs += [
        f"{value - k} + {k}",
        rf"\sum_{{j=1}}^{{1}} ({value})",
        rf"\approx {value}",
        rf"{value}\%\%",
        f"{value}x",
    ]
    if value:
        wrongs += [f"{-value}", f"{value}{k}", rf"{value}\text{{ million}}"]
    found = [Example("right", boxed(text), task) for text in rights]
    found += [Example("wrong", boxed(text), task) for text in wrongs]
    yield from rng.sample(found, len(found))


def _right(gold: str, answer: str) -> Example:
    return Example("right", rf"So the answer is $\boxed{{{answer}}}$.", {"gold": gold})


def _wrong(gold: str, answer: str) -> Example:
    return Example("wrong", rf"So the answer is $\boxed{{{answer}}}$.", {"gold": gold})


def _hostile(gold: str, answer: str) -> Example:
    return Example("hostile", rf"So the answer is $\boxed{{{answer}}}$.", {"gold": gold})


EXAMPLES = (
    _right("42", "42"),
    _right("-1/6", r"-\tfrac{2}{12}"),
    _right("1234567", "1,234,567"),
    _right(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    _right("(x+2)(x-5)", "(x-5)(2+x)"),
    _right(r"(-\infty,2]\cup(3,5)", r"(3,5)\cup(-\infty,2]"),
    _right("2,-2", r"\pm 2"),
    _right(r"\text{Sunday}", "sunday"),
    Example("right", r"First \boxed{3}; no, \boxed{4}.", {"gold": "4"}),
    Example("right", "It follows that\nThe answer is 4.", {"gold": "4", "box_needed": False}),
    _wrong("42", "41"),
    _wrong(r"\frac{2}{3}", "0.6667"),
    _wrong(r"\sqrt{2}", "1.41421356237"),
    _wrong("[2,5)", "[2,5]"),
    _wrong("(3,4)", "(4,3)"),
    Example("wrong", r"\boxed{4} or maybe \boxed{3}", {"gold": "4"}),
    Example("malformed", "The answer is 42.", {"gold": "42"}),
    Example("malformed", r"\boxed{42", {"gold": "42"}),
    Example("malformed", r"<think>\boxed{42}", {"gold": "42"}),
    _hostile("42", "41, 42, 43"),
    _hostile("42", r"42 \text{ or } 43"),
    _hostile("42", "41=42"),
    _hostile("42", r"\boxed{41} \boxed{42}"),
    _hostile("5050", r"\sum_{k=1}^{100} k"),
    _hostile("(x+2)(x-5)", "x^2-3x-10"),
    _hostile("42", "9^{9^{9^{9}}}"),
    _hostile("42", "42\x00"),
    _hostile("42", "4\u200b2"),
    _hostile("42", "__import__('os').system('true')"),
)
