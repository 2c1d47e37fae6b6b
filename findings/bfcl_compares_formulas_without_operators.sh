#!/usr/bin/env bash
# bfcl-eval 2026.3.23, the checker of the Berkeley Function Calling Leaderboard, on two tasks and answers of its own data.
#
# Seen: strings are compared without spaces and , . / - _ * ^ and in lower case, whatever they mean. simple_python_13 wants the
# area under "x**2": "x*2", "x/2" and "x - 2" are accepted, "x^2" too, "x²" and "pow(x, 2)" are not. simple_python_14 wants the
# derivative of "3x**2 + 2x - 1": "3x*2 + 2x - 1" and "3x - 2 + 2x * 1" are accepted, "3*x**2 + 2*x - 1.0" is not.
# From memory one would say: strings are compared by case and white space, punctuation at most in dates and names, and a
# formula is compared as it is or by evaluating it.
# What it costs: as a reward the checker pays for calling a tool with another function than the user asked for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" bfcl-eval==2026.3.23
PACKAGES="$folder/packages" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
import sys
import types
from pathlib import Path

sys.path.insert(0, os.environ["PACKAGES"])
# The table of all models imports the client of each; the checker asks it only how a model writes dots in names.
models = types.ModuleType("bfcl_eval.constants.model_config")
models.MODEL_CONFIG_MAPPING = {"policy": types.SimpleNamespace(underscore_to_dot=False)}
sys.modules[models.__name__] = models
from bfcl_eval.constants.enums import Language
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

data = Path(os.environ["PACKAGES"], "bfcl_eval/data")


def row(path, name):
    return next(row for row in map(json.loads, path.read_text().splitlines()) if row["id"] == name)


def accepted(name, function, **arguments):
    task = row(data / "BFCL_v4_simple_python.json", name)
    answer = row(data / "possible_answer/BFCL_v4_simple_python.json", name)["ground_truth"]
    call = [{next(iter(answer[0])): {"function": function, **arguments}}]
    return ast_checker(task["function"], call, answer, Language.PYTHON, "simple_python", "policy")["valid"]


area = {"x**2": True, "x^2": True, "x*2": True, "x/2": True, "x - 2": True, "x²": False, "pow(x, 2)": False, "x + 2": False}
slope = {"3x**2 + 2x - 1": True, "3x*2 + 2x - 1": True, "3x - 2 + 2x * 1": True, "3*x**2 + 2*x - 1.0": False}
for function, expected in area.items():
    print(f"area under {function}: {'accepted' if accepted('simple_python_13', function, interval=[1.0, 3.0]) else 'refused'}")
    assert accepted("simple_python_13", function, interval=[1.0, 3.0]) is expected, function
for function, expected in slope.items():
    print(f"derivative of {function}: {'accepted' if accepted('simple_python_14', function) else 'refused'}")
    assert accepted("simple_python_14", function) is expected, function
PYTHON
