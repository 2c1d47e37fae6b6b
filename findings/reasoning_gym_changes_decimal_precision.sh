#!/usr/bin/env bash
# reasoning-gym 0.1.25: making an entry of decimal_arithmetic sets the precision of decimal for the whole process.
#
# Seen: before, getcontext().prec is 28; after one entry it is 12, and Decimal("2652616090") + Decimal("0.001") is
# 2652616090.00. The same dataset asks for 12 significant digits and pays in full within 0.001: -1.3151 for -1.316. number_format
# asks for one of four numbers, pays within 0.01, and its gold for 947865419.169000 reads 947865419.1689999.
# From memory one would say: a generator of tasks leaves global state alone, and a task that asks for 12 digits checks them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q reasoning-gym==0.1.25
"$folder/venv/bin/python" - <<'PYTHON'
from decimal import Decimal, getcontext

import reasoning_gym

before = getcontext().prec
arithmetic = reasoning_gym.create_dataset("decimal_arithmetic", size=1, seed=7)
entry = arithmetic[0]
total = Decimal("2652616090") + Decimal("0.001")
print("precision", before, getcontext().prec, total)
assert (before, getcontext().prec, str(total)) == (28, 12, "2652616090.00")
near = str(Decimal(entry["answer"]) + Decimal("0.0009"))
print(entry["question"], entry["answer"], "pays", arithmetic.score_answer(near, entry), "for", near)
assert arithmetic.score_answer(near, entry) == 1.0

format_ = reasoning_gym.create_dataset("number_format", size=1, seed=7)
entry = format_[0]
print(entry["answer"], format_.score_answer("947865419.16", entry))
assert entry["answer"] == "947865419.1689999" and "947865419.169000" in entry["question"]
assert format_.score_answer("947865419.16", entry) == 1.0
PYTHON
