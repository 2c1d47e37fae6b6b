"""verl's Parquet: `data_source`, `prompt` as messages, `reward_model.ground_truth`, `ability`, `extra_info`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row, is_prompt, named_verifier, one_gold


def convert(row: Mapping[str, Any]) -> Row:
    """The gold is `reward_model.ground_truth`; a program's inputs and outputs in it are cases of `python_stdio`."""
    truth = row["reward_model"].get("ground_truth")
    cases = program_cases(truth)
    if cases is not None:
        return {"task": {"prompt": "", "verifier": "python_stdio", "cases": cases}}
    source = row["data_source"] if row.get("ability") != "math" else "math"
    return {"gold": one_gold(truth, "reward_model.ground_truth"), **named_verifier(source)}


def program_cases(truth: Any) -> list[Row] | None:
    """[{stdin, stdout}] of a ground truth that holds `inputs` and `outputs`, as JSON text or a struct; else None."""
    if isinstance(truth, str) and truth.lstrip().startswith("{"):
        try:
            truth = json.loads(truth)
        except ValueError:
            return None
    if not isinstance(truth, Mapping) or not {"inputs", "outputs"} <= truth.keys():
        return None
    if truth.get("fn_name"):
        raise ValueError("its ground truth calls a function by name; only programs that read stdin can be judged")
    pairs = zip(truth["inputs"], truth["outputs"], strict=True)
    return [{"stdin": str(given), "stdout": str(wanted)} for given, wanted in pairs]


def matches(row: Mapping[str, Any]) -> bool:
    model = row.get("reward_model")
    return isinstance(model, Mapping) and "ground_truth" in model and is_prompt(row.get("prompt"))


FORMAT = Format(convert, ("data_source", "prompt", "reward_model"), "verl (Parquet)", matches=matches)
