#!/usr/bin/env bash
# math-verify 0.9.0: verify(gold, target) is not symmetric, and reads some equal answers as different.
#
# Seen: gold "-2 <= x <= 7" accepts "x in [-2,7]", the reverse is refused; gold 13 accepts "12=13" and refuses "13=12" (the
# last part counts). 1/3 accepts 0.333333 and refuses 0.3333. (1,2) equals {1,2}, 5 cm equals 5 m, A equals a.
# Refused: -2 for the cube root of -8 (sympy takes the complex root), \sqrt{-1} for i, (1,2) for a column vector, 1e3 for
# 1000. \log 100 is 2 (base 10), although sympy's log is natural and \ln 100 is not \log 100.
# From memory one would say: equality is symmetric, units count, and a check by sympy finds i = sqrt(-1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
import logging

from math_verify import parse, verify

logging.disable(logging.CRITICAL)


def accepts(gold, answer):
    return verify(parse(f"${gold}$"), parse(f"${answer}$"))


one_way = [(r"-2 \le x \le 7", r"x \in [-2,7]"), ("13", "12=13")]
accepted = [(r"\frac{1}{3}", "0.333333"), ("(1,2)", r"\{1,2\}"), (r"5 \text{ cm}", r"5 \text{ m}"), ("A", "a"),
            (r"\log 100", "2")]
refused = [(r"\frac{1}{3}", "0.3333"), (r"\sqrt[3]{-8}", "-2"), ("i", r"\sqrt{-1}"),
           (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"), ("1000", "1e3"), (r"\ln 100", r"\log 100")]
for gold, answer in one_way:
    print(f"{gold} | {answer}: {accepts(gold, answer)}, reversed {accepts(answer, gold)}")
    assert accepts(gold, answer) and not accepts(answer, gold)
for rows, expected in ((accepted, True), (refused, False)):
    for gold, answer in rows:
        print(f"{gold} | {answer}: {accepts(gold, answer)}")
        assert accepts(gold, answer) is expected, (gold, answer)
PYTHON
