#!/usr/bin/env bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0): a space between groups of digits is a product or a mixed number.
#
# Seen: "10 000" is 10*0, so gold "25 000" accepts the answer "3 000" and refuses "25000"; "9\ 999" is 9 + 999 = 1008, and
# "3 1/2" is 2. "10\,000", the usual LaTeX for ten thousand, is 0 as well. A base in subscript is dropped: 1010_2 equals
# 1010_3 and 1010, not 10. So is a prime: f'(x) equals f(x). A degree sign is dropped: \sin 90^\circ is the sine of
# 90 radians and refused for 1. 12:30 is the fraction 2/5, 0.1\overline{6} is not 1/6, and 1/2x is 1/(2x).
# From memory one would say: a space or \, between groups of three digits is a thousands separator, as in ISO 80000, or the
# answer is not parsed and refused; a base, a prime and a degree sign count.
# What it costs: golds of two or more groups that end in 000 are all equal, so every such answer is right for every other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
import logging

from math_verify import parse, verify

logging.disable(logging.CRITICAL)
accepted = [("25 000", "3 000"), (r"10\,000", "0"), (r"9\ 999", "1008"), ("3 1/2", "2"), ("1010_2", "1010_3"),
            ("1010_2", "1010"), ("f'(x)", "f(x)"), ("12:30", "0.4"), ("1/2x", r"\frac{1}{2x}")]
refused = [("25 000", "25000"), (r"10\,000", "10000"), (r"9\ 999", "9999"), ("3 1/2", "3.5"), ("1010_2", "10"),
           (r"\sin 90^\circ", "1"), (r"0.1\overline{6}", r"\frac{1}{6}"), ("1/2x", r"\frac{x}{2}")]
for rows, expected in ((accepted, True), (refused, False)):
    for gold, answer in rows:
        verdict = verify(parse(f"${gold}$"), parse(f"${answer}$"))
        print(f"gold {gold} | answer {answer}: {'accepted' if verdict else 'refused'}")
        assert verdict is expected, (gold, answer)
PYTHON
