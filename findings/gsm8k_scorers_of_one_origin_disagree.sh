#!/usr/bin/env bash
# skyrl-gym 0.4.0 and verl 0.9.1: two copies of one GSM8K scorer, and a reward for SQL that compares sets.
#
# Seen: of two "#### N" lines skyrl-gym reads the first and verl the last, and verl reads the last 300 characters only. Both read
# "#### 42." as "42.", which is not 42, and pay 0; "#### $42" is no answer for either, although both remove "$" after
# the match; gold "1,234" is never met, since commas are removed from the answer alone.
# skyrl-gym's SQL environment compares frozensets of rows: ascending equals descending, and DISTINCT equals all rows.
# From memory one would say: the GSM8K scorers of RL libraries are the same function, and take the last answer; a query is
# compared as a list where the reference says ORDER BY, and as a multiset elsewhere.
# What it costs: a policy that tries an answer, checks it and corrects it is paid in one library and not in the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" skyrl-gym==0.4.0 verl==0.9.1
PACKAGES="$folder/packages" "$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
import os
import sqlite3
from pathlib import Path

packages = Path(os.environ["PACKAGES"])


def load(name, path):  # one file of a package, without what the package imports
    spec = importlib.util.spec_from_file_location(name, packages / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


skyrl = load("skyrl_gsm8k", "skyrl_gym/envs/gsm8k/utils.py").compute_score
verl = load("verl_gsm8k", "verl/utils/reward_score/gsm8k.py").compute_score
corrected = "#### 41\nWait, that is wrong.\n#### 42"
cases = {"corrected": (corrected, "42"), "first of two": (corrected, "41"), "early": ("#### 42\n" + "checked. " * 40, "42"),
         "full stop": ("#### 42.", "42"), "dollar": ("#### $42", "42"), "gold with comma": ("#### 1,234", "1,234")}  # fmt: skip
paid = {name: (skyrl(*case), verl(*case)) for name, case in cases.items()}
for name, (one, other) in paid.items():
    print(f"{name:16} skyrl-gym {one}  verl {other}")
assert paid == {"corrected": (0.0, 1.0), "first of two": (1.0, 0.0), "early": (1.0, 0), "full stop": (0.0, 0.0),
                "dollar": (0, 0), "gold with comma": (0.0, 0.0)}  # fmt: skip

database = str(packages / "people.db")
with sqlite3.connect(database) as connection:
    connection.executescript("create table p (name, age); insert into p values ('Ann', 1), ('Bob', 2), ('Cid', 2);")
sql = load("skyrl_sql", "skyrl_gym/envs/sql/utils.py").compute_score_single
reference = "select age from p order by age"
for query in ("select age from p order by age desc", "select distinct age from p", "select name from p"):
    reward = sql(f"<think>So.</think><solution>{query}</solution>", reference, database)
    print(f"{query:36} {reward}")
    assert reward == (0.0 if "name" in query else 1.0)
PYTHON
