"""The smaller verifiers against oracles of their own: Python's arithmetic, hand counts, a second database."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import verifiers
from verifiers import countdown, instructions, json_schema, sql_query
from verifiers._sql_worker import rows_of


def status(name: str, completion: str, task: Mapping[str, Any]) -> str:
    (verdict,) = verifiers.load(name).grade([completion], [task])
    return verdict.status


# -- countdown


def test_countdown_evaluates_as_python_does() -> None:
    rng = random.Random(0)

    def grow(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return str(rng.randint(0, 9))
        inner = f"{grow(depth - 1)}{rng.choice([' + ', '-', '*', '/'])}{grow(depth - 1)}"
        return f"({inner})" if rng.random() < 0.6 else inner

    for _ in range(500):
        text = grow(3)
        exact = "".join(f"Fraction({c})" if c.isdigit() else c for c in text)
        try:
            expected = eval(exact, {"Fraction": Fraction})
        except ZeroDivisionError:
            with pytest.raises(ValueError, match="division by zero"):
                countdown.evaluate(text)
            continue
        assert countdown.evaluate(text)[0] == expected, text


def test_every_generated_puzzle_uses_its_numbers_and_is_the_same_for_its_seed() -> None:
    rows = list(countdown.generate(200, 3))
    assert rows == list(countdown.generate(200, 3)) != list(countdown.generate(200, 4))
    assert {status("countdown", row["completion"], row["task"]) for row in rows} == {"pass"}


# -- json_schema


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [(1, 1.0, True), (1, True, False), ([1], [True], False), ({"a": 1}, {"a": 1.0}, True), ("1", 1, False),
     ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ([1, 2], [2, 1], False), (None, False, False), ({}, [], False)],
)  # fmt: skip
def test_json_equality_is_jsons_and_not_pythons(left: Any, right: Any, same: bool) -> None:
    assert json_schema.same(left, right) is same is json_schema.same(right, left)


def test_a_reference_outside_the_schema_is_never_fetched() -> None:
    task = {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}}
    (verdict,) = verifiers.load("json_schema").grade(["{}"], [task])
    assert verdict.status == "error" and "127.0.0.1" in verdict.detail


@pytest.mark.parametrize("schema", [{"type": "strnig"}, {"patternProperties": {"(a+)+": {}}}])
def test_a_schema_that_cannot_be_used_is_an_error_of_the_task(schema: dict) -> None:
    assert status("json_schema", "{}", {"schema": schema}) == "error"


# -- sql_query

SHOP = """CREATE TABLE sales (id INTEGER, item TEXT, price REAL);
INSERT INTO sales VALUES (1, 'a', 0.1), (2, 'b', 0.2), (3, 'a', 0.3), (4, 'c', NULL), (5, 'b', 0.2);"""


@pytest.mark.parametrize(
    "query",
    [
        "SELECT item, SUM(price) FROM sales GROUP BY item",
        "SELECT COUNT(*) FROM sales WHERE price IS NULL",
        "SELECT DISTINCT item FROM sales ORDER BY item",
        "SELECT id, price * 10 FROM sales WHERE item = 'a'",
        "VALUES (1, 'x'), (2, NULL)",
    ],
)
def test_the_worker_returns_what_a_plain_connection_returns(query: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SHOP)
    found = sql_query.WORKER.ask({"schema": SHOP, "query": query})
    assert [tuple(cell[1] for cell in row) for row in found["rows"]] == connection.execute(query).fetchall()


@pytest.mark.parametrize(
    ("query", "gold", "expected"),
    [
        ("SELECT item FROM sales ORDER BY id DESC", "SELECT item FROM sales", "pass"),
        ("SELECT item FROM sales ORDER BY id DESC", "SELECT item FROM sales ORDER BY id", "fail"),
        ("SELECT item FROM sales ORDER BY id", "SELECT item FROM (SELECT * FROM sales ORDER BY price)", "pass"),
        ("SELECT DISTINCT item FROM sales", "SELECT item FROM sales", "fail"),
        ("SELECT SUM(price) FROM (SELECT * FROM sales ORDER BY id DESC)", "SELECT SUM(price) FROM sales", "pass"),
        ("SELECT CAST(id AS TEXT) FROM sales", "SELECT id FROM sales", "fail"),
        ("SELECT id * 1.0 FROM sales", "SELECT id FROM sales", "pass"),
        ("SELECT price + 1e-6 FROM sales", "SELECT price FROM sales", "fail"),
        ("-- all of it\nSELECT id FROM sales", "SELECT id FROM sales", "pass"),
        ("INSERT INTO sales VALUES (1, 'a', 1)", "SELECT id FROM sales", "malformed"),
        ("SELECT random()", "SELECT id FROM sales", "fail"),
        ("PRAGMA table_info(sales)", "SELECT id FROM sales", "malformed"),
        ("SELECT * FROM pragma_table_info('sales')", "SELECT id FROM sales", "fail"),
        ("SELECT count(*) FROM sales a, sales b, sales c, sales d, sales e, sales f, sales g, sales h, sales i",
         "SELECT id FROM sales", "fail"),
    ],
)  # fmt: skip
def test_a_query_is_judged_by_its_result(query: str, gold: str, expected: str) -> None:
    assert status("sql_query", query, {"schema": SHOP, "query": gold}) == expected


@pytest.mark.parametrize(
    "task", [{"schema": "CREATE TABEL x", "query": "SELECT 1"}, {"schema": SHOP, "query": "SELEC"}]
)
def test_a_task_that_does_not_run_is_an_error(task: dict) -> None:
    assert status("sql_query", "SELECT 1", task) == "error"


def test_a_query_cannot_read_or_write_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.db"
    with sqlite3.connect(secret) as connection:
        connection.execute("CREATE TABLE t (x)")
    for query in (
        f"SELECT * FROM readfile('{secret}')",
        f"SELECT writefile('{tmp_path / 'out'}', 'x')",
        f"WITH x AS (SELECT 1) SELECT load_extension('{secret}')",
    ):
        assert status("sql_query", query, {"schema": SHOP, "query": "SELECT id FROM sales"}) == "fail"
    assert [path.name for path in tmp_path.iterdir()] == ["secret.db"]


# -- instructions


@pytest.mark.parametrize(
    ("text", "rule", "kept"),
    [
        ("It's a well-known fact.", {"check": "words", "exactly": 4}, True),
        ("One. Two! Three? four", {"check": "sentences", "exactly": 4}, True),
        ("a\n\nb\n \nc", {"check": "paragraphs", "exactly": 3}, True),
        ("- a\n * b\n-c\n• d", {"check": "bullets", "exactly": 3}, True),
        ("Dear [name], at [place]", {"check": "placeholders", "at_least": 2}, True),
        ("*one* and **two** but * not", {"check": "highlights", "exactly": 2}, True),
        ("abc", {"check": "characters", "at_most": 2}, False),
        ("a\n\nb", {"check": "lines", "exactly": 2}, True),
        ("Tea, teapot, TEA", {"check": "includes", "words": ["tea"], "at_least": 2}, True),
        ("Tea, teapot", {"check": "includes", "words": ["tea"], "at_least": 2}, False),
        ("a.c", {"check": "includes", "words": ["a.c"]}, True),
        ("abc", {"check": "includes", "words": ["a.c"]}, False),
        ("coffees", {"check": "excludes", "words": ["coffee"]}, True),
        ("Coffee!", {"check": "excludes", "words": ["coffee"]}, False),
        ("Eleven", {"check": "letter", "letter": "e", "exactly": 3}, True),
        ("Dear you", {"check": "starts_with", "text": "Dear"}, True),
        ("so. Bye", {"check": "ends_with", "text": "Bye."}, False),
        ("all small 1", {"check": "case", "case": "lower"}, True),
        ("ALL but one", {"check": "case", "case": "upper"}, False),
        ("a,b", {"check": "no", "characters": ",;"}, False),
        ("see <<Title>> here", {"check": "wrapped", "open": "<<", "close": ">>"}, True),
        ("see << >> here", {"check": "wrapped", "open": "<<", "close": ">>"}, False),
        ('"all"', {"check": "wrapped", "open": '"', "close": '"', "whole": True}, True),
        ('"', {"check": "wrapped", "open": '"', "close": '"', "whole": True}, False),
        ("Part 1\nx\nPart 2\ny", {"check": "sections", "heading": "Part", "exactly": 2}, True),
        ("Part 1\nx\nPart 3\ny", {"check": "sections", "heading": "Part", "exactly": 2}, False),
        ('```json\n{"a": 1}\n```', {"check": "json"}, True),
        ("7", {"check": "json"}, False),
        ("Hi\n\nP.S. Bring the cat", {"check": "postscript"}, True),
        ("Hi\n\nP.S.", {"check": "postscript"}, False),
        ("Why? Because.", {"check": "repeats", "text": "Why?"}, True),
        ("Why?", {"check": "repeats", "text": "Why?"}, False),
        ("élan vital", {"check": "language_marks", "script": "latin"}, True),
        ("élan витал", {"check": "language_marks", "script": "latin"}, False),
    ],
)
def test_each_instruction_is_counted_as_a_person_would(text: str, rule: dict, kept: bool) -> None:
    assert instructions.follows(text, rule) is kept


def test_every_check_is_tried_above() -> None:
    tried = {mark.args[1][i][1]["check"] for mark in test_each_instruction_is_counted_as_a_person_would.pytestmark  # type: ignore[attr-defined]
             for i in range(len(mark.args[1]))}  # fmt: skip
    assert tried == set(instructions.COUNTED) | set(instructions.CHECKS)


@pytest.mark.parametrize(
    "rule",
    [{"check": "wrods"}, {"check": "words"}, {"check": "case", "case": "camel"}, {"check": "includes", "words": "a"}],
)
def test_an_instruction_that_makes_no_sense_is_an_error_of_the_task(rule: dict) -> None:
    assert status("instructions", "some text", {"instructions": [rule]}) == "error"
    assert status("instructions", "some text", {"instructions": []}) == "error"


# -- numeric, multiple_choice, exact, regex, reasoning_gym


@pytest.mark.parametrize(
    ("gold", "answer", "tolerance", "expected"),
    [
        (100, "101", {"rtol": 0.01}, "pass"),
        (100, "101.0001", {"rtol": 0.01}, "fail"),
        (0, "0.001", {"rtol": 0.5}, "fail"),
        (0, "0.001", {"atol": 0.001}, "pass"),
        (-5, "-4.9", {"atol": 0.1}, "pass"),
        ("1/3", "0.3333", {"atol": 1e-4}, "pass"),
        ("1/3", "0.3333", {}, "fail"),
        (0.1, "0.1", {}, "pass"),
        (1, "1", {"atol": -1}, "error"),
        ("many", "1", {}, "error"),
    ],
)
def test_tolerances_are_exact_at_their_edges(gold: Any, answer: str, tolerance: dict, expected: str) -> None:
    assert status("numeric", rf"\boxed{{{answer}}}", {"gold": gold, **tolerance}) == expected


@pytest.mark.parametrize("gold", ["E", "", "AB", "1"])
def test_a_gold_that_is_no_choice_is_an_error(gold: str) -> None:
    assert status("multiple_choice", "A", {"gold": gold, "choices": ["a", "b", "c", "d"]}) == "error"


def test_a_pattern_that_does_not_compile_is_an_error_and_an_empty_gold_too() -> None:
    assert status("regex", "x", {"pattern": "("}) == "error"
    assert status("exact", "x", {"gold": ""}) == status("exact", "x", {"gold": []}) == "error"


def test_a_dataset_that_is_not_allowed_is_refused() -> None:
    if verifiers.load("reasoning_gym").unavailable() is None:
        task = {"dataset": "game_of_life_halting", "entry": {"answer": "True"}}
        assert status("reasoning_gym", "<answer>I think 42.</answer>", task) == "error"


def test_no_verifier_imports_torch() -> None:
    code = "import sys, verifiers; [verifiers.load(n) for n in verifiers.available()]; sys.exit('torch' in sys.modules)"
    root = Path(verifiers.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    "query",
    [
        "WITH d AS (SELECT 1) DELETE FROM sales",
        "SELECT random()",
        "SELECT current_timestamp",
        "SELECT load_extension('x')",
        "SELECT * FROM pragma_database_list",
        "ATTACH ':memory:' AS other",
        "PRAGMA writable_schema = 1",
        "CREATE TABLE x (y)",
    ],
)
def test_the_database_lets_a_query_read_and_do_nothing_else(query: str) -> None:
    refused = rows_of({"schema": SHOP, "query": query})["refused"]
    assert "authorized" in refused or "prohibited" in refused, refused
