"""reasoning_gym: exact numbers, golds without an answer, and the same rows in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import getcontext, localcontext
from pathlib import Path

import pytest

import verifiers
from verifiers import reasoning_gym
from verifiers._reasoning_gym_allowed import ALLOWED
from verifiers._reasoning_gym_rows import entries
from verifiers._reasoning_gym_survey import near_numbers

ROOT = Path(__file__).parents[2]
# as some datasets of the package: the order of a set of strings decides what a seed gives
STAND_IN = """
import decimal, random

def create_dataset(name, size, seed):
    if name == "missing":
        raise ValueError("no dataset is called missing")
    decimal.getcontext().prec = 12
    print("making", name)
    rng = random.Random(seed)
    words = list({"ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"})
    return [{"question": f"{name}: {rng.choice(words)}?", "answer": (1, 2)} for _ in range(size)]
"""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("-1.316", "pass"),
        ("-1.3160", "pass"),
        ("-1.3151", "fail"),
        ("-1.317", "fail"),
        ("1.316", "fail"),
        ("", "malformed"),
    ],
)
def test_decimal_arithmetic_wants_the_exact_number(answer: str, expected: str) -> None:
    task = {"dataset": "decimal_arithmetic", "entry": {"answer": "-1.316"}}
    assert reasoning_gym.verify(f"<answer>{answer}</answer>", task).status == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", [None, "", " "])
def test_an_entry_without_an_answer_is_an_error(gold: str | None) -> None:
    task = {"dataset": "chain_sum", "entry": {"question": "1 + 1 = ?", "answer": gold}}
    (verdict,) = verifiers.load("reasoning_gym").grade(["<answer>2</answer>"], [task])
    assert verdict.status == "error" and "no answer" in verdict.detail


def test_the_survey_tries_numbers_near_the_gold() -> None:
    assert {"-1.315", "-1.317", "-1.3161", "-1.314684"} <= set(near_numbers("dice", "-1.316"))
    near_12 = ["12.0001", "11.9999", "12.001", "11.999", "12.012", "11.988", "13", "11"]
    assert near_numbers("chain_sum", "12") == near_12
    assert near_numbers("chain_sum", "a cat") == near_numbers("power_function", "12") == []


def test_the_survey_is_exact_whatever_precision_a_dataset_sets() -> None:
    with localcontext(prec=12):
        assert "2652616090.0001" in near_numbers("products", "2652616090")


def test_a_dataset_that_is_not_allowed_is_refused() -> None:
    if verifiers.load("reasoning_gym").unavailable() is None:
        task = {"dataset": "game_of_life_halting", "entry": {"answer": "True"}}
        (verdict,) = verifiers.load("reasoning_gym").grade(["<answer>I think 42.</answer>"], [task])
        assert verdict.status == "error"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "reasoning_gym.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_seed_gives_the_same_rows_whatever_the_hash_seed_of_the_process(stand_in: Path) -> None:
    code = "import json; from verifiers import reasoning_gym as r; print(json.dumps(list(r.generate(12, 3))))"
    rows = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{stand_in}:{ROOT}"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout))
    assert rows[0] == rows[1] and len({row["prompt"].split(": ")[1] for row in rows[0]}) > 3
    assert [row["task"]["dataset"] for row in rows[0]] == [*ALLOWED[:12]]


def test_entries_come_as_json_would_bring_them_and_change_nothing_in_this_process(stand_in: Path) -> None:
    before = getcontext().prec
    made = entries([("a", 2, 1), ("b", 1, 1)])
    assert [entry["question"].split(":")[0] for entry in made] == ["a", "a", "b"] and made[0]["answer"] == [1, 2]
    assert getcontext().prec == before != 12


def test_a_dataset_that_cannot_be_made_says_why(stand_in: Path) -> None:
    with pytest.raises(RuntimeError, match="reasoning_gym: ValueError: no dataset is called missing"):
        entries([("missing", 1, 1)])
