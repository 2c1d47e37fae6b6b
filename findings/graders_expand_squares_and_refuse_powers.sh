#!/usr/bin/env bash
# OpenRLHF 0.11.2, verl 0.9.1 and math-verify 0.9.0: the functions that compare an answer with the gold, on equal answers.
#
# Seen (OpenRLHF, verl, math-verify; + accepted, - refused):
#   2^{10} for 1024     - - +     1024 for 2^{10}    - - +     \sqrt{16} for 4      - - +     5! for 120           - - +
#   4/2 for 2           - - +     \frac{2}{4}, 1/2   - - +     x^2+2x+1, (x+1)^2    + - +     x*2 for 2x           + - +
#   1,000 for 1000      + - +     3.0 for 3          + - +     1e3 for 1000         + - -     1 1/2 for 3/2        + - -
#   12 cm for 12        + - +     2x for y=2x        + + +     \frac{-1}{2}, -1/2   + - +     yes for Yes          + - +
# From memory one would say: what sympy can expand it can also compute, so a grader that knows (x+1)^2 knows 2^{10}; and a
# grader that removes LaTeX and units reads 3.0 as 3 and 1,000 as 1000.
# (OpenRLHF wants an integer to be written as one, on either side; verl compares normalised strings.)
# What it costs: one policy with one data set has three accuracies, and unsimplified right answers are punished in two.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0 pylatexenc==2.11
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" openrlhf==0.11.2 verl==0.9.1
PACKAGES="$folder/packages" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.util
import logging
import os
from pathlib import Path

from math_verify import parse, verify

logging.disable(logging.CRITICAL)


def load(name, path):  # one file of a package, without what the package imports
    spec = importlib.util.spec_from_file_location(name, Path(os.environ["PACKAGES"], path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


openrlhf = load("openrlhf_math", "openrlhf/utils/math_utils.py").grade_answer
verl = load("verl_math", "verl/utils/reward_score/math_reward.py").is_equiv
expected = {("1024", "2^{10}"): "--+", ("2^{10}", "1024"): "--+", ("4", r"\sqrt{16}"): "--+", ("120", "5!"): "--+", ("2", "4/2"): "--+",
            (r"\frac{1}{2}", r"\frac{2}{4}"): "--+", ("(x+1)^2", "x^2+2x+1"): "+-+", ("2x", "x*2"): "+-+", ("1000", "1,000"): "+-+",
            ("3", "3.0"): "+-+", ("1000", "1e3"): "+--", ("3/2", "1 1/2"): "+--", ("12", "12 cm"): "+-+", ("y=2x", "2x"): "+++",
            (r"-\frac{1}{2}", r"\frac{-1}{2}"): "+-+", ("Yes", "yes"): "+-+"}
wrong = []
for (gold, answer), verdicts in expected.items():
    accepted = openrlhf(answer, gold), verl(answer, gold), verify(parse(f"${gold}$"), parse(f"${answer}$"))
    seen = "".join("+" if verdict else "-" for verdict in accepted)
    print(f"{answer} for {gold}: {seen}")
    if seen != verdicts:
        wrong.append((gold, answer, seen))
assert not wrong, wrong
PYTHON
