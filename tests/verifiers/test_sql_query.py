"""The verifier sql_query: results, order, and what a query may do, against a second connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import verifiers
from verifiers import sql_query
from verifiers._sql_worker import rows_of


def status(name: str, completion: str, task: Mapping[str, Any]) -> str:
    (verdict,) = verifiers.load(name).grade([completion], [task])
    return verdict.status


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
    ("query", "gold", "expected"),
    [
        # price: a .1, b .2, a .3, c NULL, b .2
        ("SELECT id FROM sales ORDER BY price, id DESC", "SELECT id FROM sales ORDER BY price", "pass"),
        ("SELECT id FROM sales ORDER BY price DESC", "SELECT id FROM sales ORDER BY price", "fail"),
        ("SELECT id FROM sales WHERE id=5", "SELECT id FROM sales WHERE id>1 ORDER BY price LIMIT 1 OFFSET 1", "pass"),
        ("SELECT id FROM sales WHERE id = 2", "SELECT id FROM sales WHERE id > 1 ORDER BY price LIMIT 1, 1;", "pass"),
        ("SELECT id FROM sales WHERE id=3", "SELECT id FROM sales WHERE id>1 ORDER BY price LIMIT 1 OFFSET 1", "fail"),
        ("VALUES (2), (2)", "SELECT id FROM sales WHERE price = .2 ORDER BY price LIMIT 2", "fail"),
        ("VALUES (5), (2)", "SELECT id FROM sales WHERE price = .2 ORDER BY price LIMIT 2", "pass"),
        ("VALUES ('b', 2), ('a', 2), ('c', 1)",
         "SELECT item, COUNT(*) FROM sales GROUP BY item ORDER BY COUNT(*) DESC", "pass"),
        ("VALUES ('b', 2), ('a', 2), ('c', 1)",
         "SELECT item, COUNT(*) AS n FROM sales GROUP BY item ORDER BY n DESC", "pass"),
        ("VALUES ('c', 1), ('b', 2), ('a', 2)",
         "SELECT item, COUNT(*) AS n FROM sales GROUP BY item ORDER BY n DESC", "fail"),
        ("VALUES ('c', 1), ('b', 2), ('a', 2)",
         "SELECT item, COUNT(*) FROM sales GROUP BY item ORDER BY 2 DESC", "fail"),
        ("VALUES ('c'), ('a'), ('b')", 'SELECT DISTINCT item FROM sales ORDER BY "item"', "fail"),
        ("VALUES (2), (1)", "SELECT id FROM sales WHERE id < 3 AND 'order by' != item", "pass"),
        ("VALUES (2), (1)", "SELECT id FROM sales WHERE id < 3 /* order by id */", "pass"),
        ("VALUES (2), (1)", "SELECT id FROM sales WHERE id < 3 ORDER BY id -- order by price", "fail"),
        ("VALUES (1e-16)", "SELECT .1 + .2 - .3", "pass"),
        ("VALUES (1e-6)", "SELECT .1 + .2 - .3", "fail"),
        ("```postgresql\nVALUES (1)\n```", "SELECT 1", "pass"),
        ("VALUES (1)\n```", "SELECT 1", "pass"),
        ("<answer>VALUES (1)</answer>", "SELECT 1", "pass"),
    ],
)  # fmt: skip
def test_an_order_that_the_gold_leaves_open_is_open(query: str, gold: str, expected: str) -> None:
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
