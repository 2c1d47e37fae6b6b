#!/usr/bin/env bash
# datasets 5.2.0, load_dataset("json"): a string in a column that also holds numbers is decoded.
#
# Seen: golds "0.50", 7, "2024-01-05" come back as 0.5, 7, "2024-01-05": the trailing zero is lost, and which strings are
# decoded depends on the other rows of the file. A column of ISO dates alone becomes datetime objects; with one row that is
# no date it stays text. Rows of different keys keep their own keys, while Dataset.from_list of the same rows fills nulls.
# From memory one would say: a column that mixes strings and numbers raises an Arrow error, and a JSON string stays a string.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0
"$folder/venv/bin/python" - <<'PYTHON'
import datetime
import json
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets

datasets.disable_progress_bars()
assert datasets.__version__ == "5.2.0", datasets.__version__


def loaded(rows):
    folder = tempfile.mkdtemp()
    with open(f"{folder}/rows.jsonl", "w") as file:
        file.write("\n".join(map(json.dumps, rows)))
    return list(datasets.load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train", cache_dir=folder))


mixed = [row["gold"] for row in loaded([{"gold": "0.50"}, {"gold": 7}, {"gold": "2024-01-05"}])]
dates = [row["gold"] for row in loaded([{"gold": "2024-01-05"}, {"gold": "2024-02-05"}])]
part = [row["gold"] for row in loaded([{"gold": "2024-01-05"}, {"gold": "soon"}])]
structs = [{"a": {"x": 1}}, {"a": {"y": 2}}]
from_file, from_list = loaded(structs), list(datasets.Dataset.from_list(structs))
print(f"datasets {datasets.__version__}: {mixed}, {dates}, {part}, {from_file}, {from_list}")
assert mixed == [0.5, 7, "2024-01-05"]
assert all(isinstance(date, datetime.datetime) for date in dates) and part == ["2024-01-05", "soon"]
assert from_file == structs and from_list == [{"a": {"x": 1, "y": None}}, {"a": {"x": None, "y": 2}}]
PYTHON
