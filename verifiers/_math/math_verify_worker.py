"""What the killable process of fallback.py runs; imported nowhere else, as it loads sympy."""

from __future__ import annotations

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic
from sympy.matrices import MatrixBase


def read(text: str) -> list:
    return parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=False)


def equal(request: list[str]) -> bool:
    """Whether [gold, answer] are equal. Only what both sides parse to an expression counts: math-verify would compare
    unparsed text by its letters."""
    golds, answers = ([e for e in read(text) if isinstance(e, Basic | MatrixBase)] for text in request)
    if not golds or not answers:
        return False
    return bool(verify(golds, answers, float_rounding=12, numeric_precision=30, strict=True, timeout_seconds=None))


def warm_up() -> None:
    """Loads what these libraries load late."""
    equal([r"\lfloor x \rfloor", r"\frac{1}{2}"])
