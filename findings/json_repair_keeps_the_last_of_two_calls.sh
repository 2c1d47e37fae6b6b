#!/usr/bin/env bash
# json-repair 0.64.6 (PyPI) and jsonrepair 3.15.0 (npm) on what models write where JSON was asked for.
#
# Seen (PyPI, then npm; E: it raises):
#   two calls, {"name": "add", ...} and {"name": "mul", ...}     the last alone      a list of both; E if on one line
#   {"a": 1} and, on the next line, {"b": 2}                     a list of both      a list of both
#   {"expr": 3 + 4}   3          E              {"score": 8/10}      "8/10"    E
#   {"t": 12:30}      12         E              {"share": 42%}       42        "42%"
#   {"n": 007}        7          "007"          {"price": $42}       42        "$42"
# From memory one would say: several values become a list whatever their keys; what is not a number becomes text or raises,
# and the two packages of one purpose agree on plain cases.
# What it costs: of two parallel calls of one shape only the last is run or graded, and an expression is paid for its first term.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q json-repair==0.64.6
(cd "$folder" && npm init -y > /dev/null && npm install --silent jsonrepair@3.15.0 > /dev/null)
cat > "$folder/repair.mjs" <<'NODE'
import { readFileSync } from 'node:fs'
import { jsonrepair } from 'jsonrepair'

const repaired = JSON.parse(readFileSync(0, 'utf8')).map((text) => {
  try { return { value: JSON.parse(jsonrepair(text)) } } catch { return { raised: true } }
})
console.log(JSON.stringify(repaired))
NODE
FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
import subprocess

import json_repair

add, multiply = {"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "mul", "arguments": {"a": 3, "b": 4}}
RAISED = "raised"
cases = [(json.dumps(add) + json.dumps(multiply), multiply, RAISED),
         (json.dumps(add) + "\n" + json.dumps(multiply), multiply, [add, multiply]),
         ('{"a": 1}\n{"b": 2}', [{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 2}]),
         ('{"expr": 3 + 4}', {"expr": 3}, RAISED), ('{"score": 8/10}', {"score": "8/10"}, RAISED),
         ('{"t": 12:30}', {"t": 12}, RAISED), ('{"share": 42%}', {"share": 42}, {"share": "42%"}),
         ('{"n": 007}', {"n": 7}, {"n": "007"}), ('{"price": $42}', {"price": 42}, {"price": "$42"})]
texts = json.dumps([text for text, _, _ in cases])
node = subprocess.run(["node", "repair.mjs"], input=texts, text=True, capture_output=True, check=True, cwd=os.environ["FOLDER"])
for (text, python_value, node_value), answer in zip(cases, json.loads(node.stdout), strict=True):
    seen = json_repair.loads(text), answer.get("value", RAISED)
    print(text.replace("\n", " / "), "| PyPI:", seen[0], "| npm:", seen[1])
    assert seen == (python_value, node_value), text
PYTHON
