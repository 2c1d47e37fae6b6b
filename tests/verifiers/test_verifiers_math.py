r"""math_answer against a corpus of its own: pairs that are one answer, pairs that are not, and texts made to hurt.

The tables are in math_answer_pairs.py.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest

import verifiers
from tests.math_answer_pairs import DIFFERENT, HURTFUL, HURTFUL_GOLDS, SAME
from verifiers import Verdict
from verifiers._killable import Killed
from verifiers._math import fallback
from verifiers._math.lexer import UnsupportedNotation
from verifiers._math.number import equal_everywhere
from verifiers._math.parse import parse
from verifiers._math.text import one_spelling


def rows(table: str) -> list[tuple[str, str]]:
    pairs = [line.split(" | ", 1) for line in table.strip().splitlines()]
    return [(gold, answer) for gold, answer in pairs]


def grade(gold: str, answer: str) -> Verdict:
    (verdict,) = verifiers.load("math_answer").grade([rf"Thus $\boxed{{{answer}}}$."], [{"gold": gold}])
    return verdict


@pytest.mark.parametrize(("gold", "answer"), rows(SAME))
def test_these_are_one_answer(gold: str, answer: str) -> None:
    assert grade(gold, answer).status == "pass", grade(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), rows(DIFFERENT))
def test_these_are_not_one_answer(gold: str, answer: str) -> None:
    assert grade(gold, answer).status in ("fail", "malformed"), grade(gold, answer)


@pytest.mark.parametrize("gold", HURTFUL_GOLDS)
def test_hurtful_answers_fail_within_a_second_in_threads_too(gold: str) -> None:
    def timed(answer: str) -> tuple[float, str]:
        started = time.monotonic()
        verdict = grade(gold, answer)
        return time.monotonic() - started, verdict.status

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(timed, HURTFUL))
    assert {status for _, status in found} <= {"fail", "malformed"}
    slow = [(seconds, answer[:60]) for (seconds, _), answer in zip(found, HURTFUL, strict=True) if seconds > 1.0]
    assert slow == []


def test_long_completions_of_boxes_and_braces_cost_linear_time() -> None:
    verifier = verifiers.load("math_answer")
    boxes = (r"\boxed{" * 50_000, r"\boxed{}" * 50_000, "{" * 300_000, "\\" * 300_000, r"\boxed{1}" * 50_000 + "}")
    for text in boxes:
        started = time.monotonic()
        verifier.grade([text], [{"gold": "5"}])
        assert time.monotonic() - started < 1.0, text[:20]


@pytest.mark.parametrize(
    ("completion", "gold", "status"),
    [
        (r"It is \boxed{3} or perhaps \boxed{4}.", "3", "fail"),
        (r"First I got \boxed{3}, but rechecking, \boxed{4}.", "4", "pass"),
        (r"\boxed{3 \text{ or } \boxed{4}}", "4", "fail"),
        (r"\boxed{\boxed{\boxed{4}}}", "4", "pass"),
        (r"\fbox{4}", "4", "pass"),
        (r"\boxed {4}", "4", "pass"),
        (r"\boxed{4", "4", "malformed"),
        (r"\boxed{4} and \boxed{5", "4", "malformed"),
        (r"\boxed{}", "4", "malformed"),
        (r"\boxed{ }", "4", "malformed"),
        (r"\boxed{$}", "4", "malformed"),
        ("4", "4", "malformed"),
        ("The answer is 4.", "4", "malformed"),
        (r"<think>\boxed{4}</think> It is 5.", "4", "malformed"),
        (r"<think>\boxed{4}", "4", "malformed"),
        (r"<think>\boxed{5}</think>\boxed{4}", "4", "pass"),
        ("\\boxed{４}", "4", "pass"),
        ("\\boxed{4\u200b}", "4", "malformed"),
        ("\\boxed{4\x00}", "4", "malformed"),
        ("\\boxed{\u202e4}", "4", "malformed"),
        ("\\boxed{\ud835}", "4", "malformed"),
        ("\\boxed{4\n}", "4", "pass"),
    ],
)
def test_what_the_final_answer_is(completion: str, gold: str, status: str) -> None:
    (verdict,) = verifiers.load("math_answer").grade([completion], [{"gold": gold}])
    assert verdict.status == status, verdict


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ("so\n#### 1,234", "pass"),
        ("The final answer is: $1234$.", "pass"),
        ("Therefore, the answer is 1234", "pass"),
        ("<answer>1234</answer>", "pass"),
        ("it is 1234", "malformed"),
        ("The answer is 1234 or 1235", "fail"),
        ("The answer is 1234.\nOr is it?", "malformed"),
        (r"The answer is 1234. \boxed{1}", "fail"),
    ],
)
def test_answers_without_a_box_are_read_where_the_task_allows(completion: str, status: str) -> None:
    (verdict,) = verifiers.load("math_answer").grade([completion], [{"gold": "1234", "box_needed": False}])
    assert verdict.status == status, verdict


def test_an_empty_gold_is_an_error_of_the_task() -> None:
    assert grade("", "5").status == "error" and grade(r"\boxed{}", "5").status == "error"


def grow(rng: random.Random, sympy: ModuleType, depth: int) -> tuple[str, Any]:
    """A random rational function of x as our text and as sympy's own tree, built by its constructors."""
    if depth == 0 or rng.random() < 0.2:
        n = rng.randint(1, 9)
        return rng.choice([("x", sympy.Symbol("x")), (str(n), sympy.Integer(n))])
    (a, va), (b, vb) = grow(rng, sympy, depth - 1), grow(rng, sympy, depth - 1)
    kind = rng.randrange(5)
    if kind == 0:
        return f"({a}+{b})", va + vb
    if kind == 1:
        return f"({a}-{b})", va - vb
    if kind == 2:
        return rf"({a}) \cdot ({b})", va * vb
    if kind == 3 and vb != 0:
        return rf"\frac{{{a}}}{{{b}}}", va / vb
    return f"({a})^{{2}}", va**2


def test_sympy_agrees_on_random_expressions() -> None:
    """Equal if and only if sympy simplifies the difference to 0."""
    sympy = pytest.importorskip("sympy")
    rng = random.Random(5)
    seen = {True: 0, False: 0}
    for _ in range(200):
        text, value = grow(rng, sympy, 3)
        other, other_value = grow(rng, sympy, 3) if rng.random() < 0.5 else (sympy.latex(sympy.expand(value)), value)
        if value.has(sympy.zoo, sympy.nan) or other_value.has(sympy.zoo, sympy.nan):
            continue
        equal = sympy.cancel(value - other_value) == 0
        try:
            assert equal_everywhere(parse(one_spelling(text)), parse(one_spelling(other))) == equal, (text, other)
        except UnsupportedNotation:
            continue
        seen[equal] += 1
    assert min(seen.values()) > 50


def test_random_text_never_raises_and_never_passes() -> None:
    rng = random.Random(11)
    pieces = [*"0123456789xyie+-*/^_=<>!|(){}[],.;:%&'~ \\$√π½²", r"\frac", r"\sqrt", r"\text{ or }", r"\cup", r"\pm"]
    pieces += [r"\begin{pmatrix}", r"\end{pmatrix}", r"\infty", r"\ln", r"\{", r"\}", r"\text{cm}", r"\le", r"\in"]
    gold = r"\frac{982451653}{577}"
    for _ in range(5000):
        verdict = grade(gold, "".join(rng.choices(pieces, k=rng.randint(1, 25))))
        assert verdict.status in ("fail", "malformed"), verdict


def test_random_rationals_are_equal_exactly_when_fractions_are() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        gold = Fraction(rng.randint(-60, 60), rng.randint(1, 12))
        answer = Fraction(rng.randint(-60, 60), rng.randint(1, 12)) if rng.random() < 0.5 else gold
        sign, k = "-" if answer < 0 else "", rng.randint(1, 5)
        spellings = [
            f"{answer}",
            rf"{sign}\frac{{{k * abs(answer.numerator)}}}{{{k * answer.denominator}}}",
            rf"\dfrac{{{answer.numerator}}}{{{answer.denominator}}}",
        ]
        if Fraction(str(float(answer))) == answer:
            spellings.append(str(float(answer)))
        spelled = rng.choice(spellings)
        assert (grade(str(gold), spelled).status == "pass") == (gold == answer), (gold, spelled)


needs_math_verify = pytest.mark.skipif(not fallback.available(), reason="math-verify is not installed")


@needs_math_verify
def test_a_gold_outside_the_grammar_is_compared_by_math_verify() -> None:
    gold = r"\lfloor x \rfloor + 1"
    assert grade(gold, r"1 + \lfloor x \rfloor").status == "pass"
    assert grade(gold, r"2 + \lfloor x \rfloor").status == "fail"


@needs_math_verify
def test_a_comparison_that_costs_too_much_is_killed_and_the_next_one_answered_in_threads_too() -> None:
    floor, costly = r"\lfloor x \rfloor", r"\lfloor x \rfloor+(x+y+z+1)^{999}"
    with pytest.raises(Killed):
        fallback.WORKER.ask([floor, costly])
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda answer: grade(floor, answer).status, [costly, floor, costly, floor]))
    assert found == ["fail", "pass", "fail", "pass"]


@pytest.mark.parametrize(
    "text", ["__import__('os')", "exec(1)", "lambda x: x", "open(1)", "5'", '5"', "5\n6", "x" * 401]
)
def test_code_never_reaches_math_verify(text: str) -> None:
    assert not fallback.worth_comparing(r"\lfloor x \rfloor", rf"\lfloor x \rfloor {text}")
    assert fallback.worth_comparing(r"\lfloor x \rfloor", r"\lfloor x \rfloor + 1")


def test_verdicts_in_threads_are_those_of_one_thread() -> None:
    pairs = rows(SAME) + rows(DIFFERENT)
    alone = [grade(gold, answer).status for gold, answer in pairs]
    order = random.Random(2).sample(range(len(pairs)), len(pairs))
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda i: grade(*pairs[i]).status, order))
    assert together == [alone[i] for i in order]
