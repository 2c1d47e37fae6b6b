r"""Random answers of the shapes that public data sets hold, each with its meaning, for pairs that must not be equal.

Shapes and their shares follow MATH, college_math, GSM8K, minerva_math and gaokao: integers, fractions, decimals,
percentages, units, money, radicals, multiples of pi, complex numbers, intervals, inequalities, unions, tuples, sets,
plus-minus, polynomials, equations, function values, exponentials, matrices, ratios, bases, words and choices.

The meaning is built beside the text, by hand: two answers whose meanings are disjoint are different answers. An answer
may have two meanings where the documented rules read it so: 25\% is 0.25 and 25. A value may also be named: `x = 5`
is the same answer as 5, and another one than `y = 5`; y and f(x) are one name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Answer:
    text: str
    meanings: frozenset[Any]
    name: str = ""  # of the value, if the text states it

    def differs(self, other: Answer) -> bool:
        return not self.meanings & other.meanings or (bool(self.name and other.name) and self.name != other.name)


def one(text: str, *meanings: Any, name: str = "") -> Answer:
    return Answer(text, frozenset(meanings), name)


def rational(rng: random.Random, size: int = 30) -> Fraction:
    return Fraction(rng.randint(-size, size), rng.choice((1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 12)))


def written(rng: random.Random, value: Fraction) -> str:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    forms = [rf"{sign}\frac{{{top}}}{{{bottom}}}", f"{sign}{top}/{bottom}", rf"{sign}\dfrac{{{top}}}{{{bottom}}}"]
    if bottom == 1:
        forms = [f"{sign}{top}", f"{sign}{top}", f"{sign}{top:,}", f"{sign}{top}.0"]
    elif bottom in (2, 4, 5, 8):
        forms.append(str(float(value)))
    return rng.choice(forms)


def plain(rng: random.Random) -> Answer:
    value = rational(rng) if rng.random() < 0.8 else Fraction(rng.randint(-(10**6), 10**6))
    return one(written(rng, value), ("number", value))


def named_value(rng: random.Random) -> Answer:
    """A value next to its name: x, a length, a value of a function, or a word."""
    name, value = rng.choice(("x", "y", "n", "r", "AB", "f(2)", "f(3)", r"\text{Area}")), rational(rng, 12)
    return one(f"{name} = {written(rng, value)}", ("number", value), ("named", name, value), name=name)


def quantity(rng: random.Random) -> Answer:
    value = Fraction(rng.randint(-99, 99)) or Fraction(7)
    unit = rng.choice(
        (r"\text{ cm}", r"\text{ cm}^2", r"\,\mathrm{m/s}", r"^\circ", r"\text{ apples}", r"^\circ\text{C}")
    )
    return one(f"{value}{unit}", ("number", value))


def money(rng: random.Random) -> Answer:
    cents = rng.randint(-10_000, 10_000)
    sign, whole, rest = "-" if cents < 0 else "", *divmod(abs(cents), 100)
    return one(rf"{sign}\${whole}.{rest:02d}", ("number", Fraction(cents, 100)))


def percentage(rng: random.Random) -> Answer:
    value = Fraction(rng.randint(-200, 200), rng.choice((1, 1, 2)))
    readings = {value / 100, value} if abs(value) > 1 else {value / 100}
    shown = str(float(value)) if value.denominator > 1 else str(value)
    return Answer(rf"{shown}\%", frozenset({("share", value), *(("number", reading) for reading in readings)}))


def radical(rng: random.Random) -> Answer:
    a, b, n = rng.randint(-9, 9), rng.choice((-4, -3, -2, -1, 1, 2, 3, 5)), rng.choice((2, 3, 5, 6, 7, 10, 11))
    root = rf"{'' if abs(b) == 1 else abs(b)}\sqrt{{{n}}}"
    text = f"{a}{'+' if b > 0 else '-'}{root}" if a else f"{'-' if b < 0 else ''}{root}"
    return one(text, ("radical", a, b, n))


def of_pi(rng: random.Random) -> Answer:
    value = rational(rng, 9) or Fraction(1)
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    numerator = rf"{'' if top == 1 else top}\pi"
    return one(f"{sign}{numerator}" if bottom == 1 else rf"{sign}\frac{{{numerator}}}{{{bottom}}}", ("pi", value))


def complex_number(rng: random.Random) -> Answer:
    a, b = rng.randint(-9, 9), rng.choice((-5, -4, -3, -2, 2, 3, 4, 5))
    return one(f"{a}{b:+d}i" if a else f"{b}i", ("complex", a, b))


def end(rng: random.Random) -> Fraction:
    return rational(rng, 12)


def interval(rng: random.Random) -> Answer:
    low, high = sorted((end(rng), end(rng) + 1))
    if low == high:
        high += 1
    opening, closing = rng.choice("[("), rng.choice("])")
    low_text, high_text = written(rng, low).replace(",", ""), written(rng, high).replace(",", "")
    kind = rng.randrange(4)
    if kind == 0:
        return one(
            rf"[{low_text},\infty)" if opening == "[" else rf"({low_text},\infty)", ("from", low, opening == "[")
        )
    if kind == 1:
        return one(f"x > {low_text}", ("from", low, False))
    if kind == 2:
        signs = (r"\le" if opening == "[" else "<", r"\le" if closing == "]" else "<")
        return one(
            f"{low_text} {signs[0]} x {signs[1]} {high_text}",
            ("pair", low, high, opening + closing),
            ("inequality", low, high),
        )
    return one(f"{opening}{low_text},{high_text}{closing}", ("pair", low, high, opening + closing))


def union(rng: random.Random) -> Answer:
    a = rng.randint(-9, 5)
    b = a + rng.randint(1, 4)
    kind = rng.randrange(2)
    text = rf"(-\infty,{a})\cup({b},\infty)" if kind else rf"x<{a} \text{{ or }} x>{b}"
    return one(text, ("outside", a, b))


def without_point(rng: random.Random) -> Answer:
    a = rng.randint(-9, 9)
    return one(
        rng.choice((rf"x \ne {a}", rf"(-\infty,{a})\cup({a},\infty)", rf"\mathbb{{R}}\setminus\{{{a}\}}")), ("not", a)
    )


def point(rng: random.Random) -> Answer:
    values = [rational(rng, 9) for _ in range(rng.choice((2, 2, 3)))]
    text = "(" + ", ".join(written(rng, value) for value in values) + ")"
    if len(values) == 2:
        meanings = ("pair", *values, "()")
        return one(f"(x,y)={text}", meanings, ("coordinates", *values)) if rng.random() < 0.2 else one(text, meanings)
    return one(text, ("triple", *values))


def collection(rng: random.Random) -> Answer:
    values = rng.sample(range(-15, 16), rng.randint(2, 4))
    text = ", ".join(map(str, values))
    meaning = ("collection", tuple(sorted(map(Fraction, values))))
    return one(rf"\{{{text}\}}" if rng.random() < 0.5 else text.replace(", ", ","), meaning)


def plus_minus(rng: random.Random) -> Answer:
    a, b = rng.randint(-9, 9), rng.randint(1, 9)
    text = rf"{a} \pm {b}" if a else rf"\pm {b}"
    both = ("collection", tuple(sorted((Fraction(a - b), Fraction(a + b)))))
    return one(text, both, *([("sum left to do", a, b)] if a else []))  # -5 ± 7 is no answer to -12, 2, nor the reverse


def polynomial(rng: random.Random) -> Answer:
    variable = rng.choice("xxxxtn")
    coefficients = (*(rng.randint(-6, 6) for _ in range(rng.randint(1, 3))), rng.choice((-3, -2, -1, 1, 2, 3)))
    terms = []
    for degree in range(len(coefficients) - 1, -1, -1):
        c = coefficients[degree]
        if c:
            power = "" if degree == 0 else variable if degree == 1 else f"{variable}^{degree}"
            size = "" if abs(c) == 1 and degree else str(abs(c))
            terms.append(f"{'-' if c < 0 else '+'}{size}{power}")
    text = "".join(terms).removeprefix("+")
    names = ("", "", "", "y=" if variable == "x" else "", f"f({variable})=")
    stated = rng.choice(names)
    identity = ["a line or a number"] if coefficients == (0, 1) else []  # x alone may be either
    curve = f"curve over {variable}" if stated else ""
    return one(stated + text, ("polynomial", variable, coefficients), *identity, name=curve)


def line(rng: random.Random) -> Answer:
    a, b, c = rng.choice((2, 3, 4, 5)), rng.choice((-5, -3, 7)), rng.randint(-9, 9)
    return one(f"{a}x{b:+d}y={c}", ("line", Fraction(a, b), Fraction(c, b)))


def function_value(rng: random.Random) -> Answer:
    name, argument = rng.choice("fghIPy"), rng.randint(-3, 5)
    shift = rng.choice((0, 0, 0, 1, 2))
    return one(f"{name}({argument})" + (f"+{shift}" if shift else ""), ("apply", name, argument, shift))


def product_of_letters(rng: random.Random) -> Answer:
    factor, name = rng.randint(1, 5), rng.choice("fghIPy")
    return one(f"{'' if factor == 1 else factor}{name}", ("letter", name, factor))


def exponential(rng: random.Random) -> Answer:
    a, k = rng.randint(1, 6), rng.choice((-3, -2, -1, 1, 2, 3))
    power = f"e^{{{'' if k == 1 else '-' if k == -1 else k}x}}"
    return one(f"{'' if a == 1 else a}{power}", ("exponential", a, k))


def trigonometric(rng: random.Random) -> Answer:
    a, k, name = rng.randint(2, 6), rng.randint(2, 5), rng.choice(("sin", "cos", "tan", "ln"))
    argument = f"{k}x" if name != "ln" else f"x+{k}"
    return one(rf"{a}\{name}({argument})", (name, a, k))


def matrix(rng: random.Random) -> Answer:
    rows, columns = rng.choice(((2, 2), (2, 1), (1, 2), (3, 1)))
    cells = [[rng.randint(-9, 9) for _ in range(columns)] for _ in range(rows)]
    body = r" \\ ".join(" & ".join(map(str, row)) for row in cells)
    kind = rng.choice(("pmatrix", "bmatrix"))
    return one(rf"\begin{{{kind}}} {body} \end{{{kind}}}", ("matrix", tuple(map(tuple, cells))))


def ratio(rng: random.Random) -> Answer:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    return one(f"{a}:{b}", ("ratio", a, b))


def in_base(rng: random.Random) -> Answer:
    base = rng.choice((2, 3, 5, 7, 8))
    digits = "1" + "".join(rng.choice("0123456789"[:base]) for _ in range(rng.randint(2, 4)))
    return one(f"{digits}_{base}", ("base", digits, base), ("number", Fraction(int(digits))))


def words(rng: random.Random) -> Answer:
    word = rng.choice(
        "Monday Tuesday Wednesday Sunday even odd Yes No True False increasing decreasing ellipse circle parabola"
        " hyperbola Alice Bob Carla red green blue neither convergent divergent".split()
    )
    return one(rng.choice((word, rf"\text{{{word}}}", word.lower())), ("word", word.lower()))


def choice(rng: random.Random) -> Answer:
    letter = rng.choice("ABCDE")
    return one(rng.choice((rf"\text{{{letter}}}", f"({letter})", rf"\textbf{{({letter})}}")), ("choice", letter))


def repeating(rng: random.Random) -> Answer:
    period = str(rng.randint(1, 98))
    value = Fraction(int(period), 10 ** len(period) - 1)
    return one(rf"0.\overline{{{period}}}", ("number", value))


SHAPES: tuple[Callable[[random.Random], Answer], ...] = (
    plain, plain, plain, named_value, named_value, quantity, money, percentage, radical, of_pi, complex_number,
    interval, union, without_point, point, collection, plus_minus, polynomial, polynomial, line, function_value,
    product_of_letters, exponential, trigonometric, matrix, ratio, in_base, words, choice, repeating,
)  # fmt: skip


def different_pairs(count: int, seed: int) -> list[tuple[Answer, Answer]]:
    """Pairs of different answers: half of one shape, so that they are near, half of any two shapes."""
    rng = random.Random(seed)
    pairs: list[tuple[Answer, Answer]] = []
    while len(pairs) < count:
        shape = rng.choice(SHAPES)
        gold, answer = shape(rng), (shape if rng.random() < 0.5 else rng.choice(SHAPES))(rng)
        if gold.differs(answer):
            pairs.append((gold, answer))
    return pairs


def equal_pairs(count: int, seed: int) -> list[tuple[Answer, Answer]]:
    """Pairs of one meaning, spelled differently; without units, of which two are two answers."""
    rng = random.Random(seed)
    pairs: list[tuple[Answer, Answer]] = []
    by_meaning: dict[Any, Answer] = {}
    while len(pairs) < count:
        answer = rng.choice([shape for shape in SHAPES if shape is not quantity])(rng)
        (meaning,) = answer.meanings if len(answer.meanings) == 1 else (None,)
        known = by_meaning.setdefault(meaning, answer)
        if meaning is not None and known.text != answer.text:
            pairs.append((known, answer))
    return pairs
