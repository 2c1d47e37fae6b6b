#!/usr/bin/env bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: M and m, R and r are one symbol, also inside one formula.
#
# Seen (gold and answer between $, the verdict is True): m/M for the gold M/m; g/2 for Mg/(M+m); 0 for the area of a
# ring, \pi(R^2-r^2); \omega is \Omega, \delta is \Delta. The same formulas with p and q are told apart. Nothing is
# said. The converter has an option lowercase_symbols, True unless set, and the parser of math-verify has no option
# for it. With lowercase_symbols=False the converter by itself keeps the letters apart.
# From memory one would say: the grader may overlook the case of a whole answer, A for a, but sympy works with two
# symbols where the formula has two, so that a formula with M and m cannot become a number.
# What it costs: physics and geometry use both cases of a letter (two masses, two radii). A policy that swaps them, or
# answers 0 for a difference of them, gets the full reward.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
import dataclasses
import logging

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import simplify

logging.disable(logging.CRITICAL)
WRONG = [
    (r"\frac{M}{m}", r"\frac{m}{M}"),
    (r"\frac{Mg}{M+m}", r"\frac{g}{2}"),
    (r"\frac{Mg}{M+m}", r"\frac{mg}{M+m}"),
    (r"\pi(R^2-r^2)", "0"),
    (r"\Omega", r"\omega"),
    (r"\Delta", r"\delta"),
]
for gold, answer in WRONG:
    verdict = verify(parse(f"${gold}$"), parse(f"${answer}$"))
    print(f"gold {gold:26} answer {answer:18} {verdict}  read as {parse(f'${gold}$')[0]}")
    assert verdict is True, (gold, answer)
for gold, answer in [(r"\frac{p}{q}", r"\frac{q}{p}"), (r"\frac{pg}{p+q}", r"\frac{g}{2}"), (r"\pi(p^2-q^2)", "0")]:
    verdict = verify(parse(f"${gold}$"), parse(f"${answer}$"))  # the same formulas with two letters
    print(f"gold {gold:26} answer {answer:18} {verdict}")
    assert verdict is False, (gold, answer)
fields = [field.name for field in dataclasses.fields(LatexExtractionConfig)]
print("options of the parser:", fields)
assert not any("case" in name for name in fields)
ring = r"\pi(R^2-r^2)"
kept = latex2sympy(ring, conversion_config=ConversionConfig(lowercase_symbols=False))
print("converter by itself:", simplify(latex2sympy(ring)), "or, with lowercase_symbols=False,", kept)
assert simplify(latex2sympy(ring)) == 0 and simplify(kept) != 0
PYTHON
