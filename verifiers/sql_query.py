"""A SQL query whose result on the task's SQLite database is that of the gold query.

The query is the last ```sql fence (or of a dialect's name), or the whole completion after its thinking. It runs read
only, in a process of its own with limits on steps, rows, CPU and memory. Several databases catch a query that is right
on one by accident. Rows that tie under the gold query's own ORDER BY may come in any order, and at the edge of its
LIMIT any of them counts (_sql_order.py).
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from functools import lru_cache
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, broken, failed, malformed, passed
from verifiers._killable import Killable, Killed, Stalled
from verifiers._sql_order import Order, order_of
from verifiers.sandbox import extract

MAX_CHARS = 20_000
FLOAT_TOLERANCE = 1e-9  # relative: sums in another order differ in the last digits
ZERO_TOLERANCE = 1e-10  # absolute: what is left of a difference of equal sums
MAX_PAIRED = 300  # rows that differ in their last digits and are paired off one by one
LANGUAGES = (
    "sql sqlite sqlite3 mysql mariadb postgresql postgres psql pgsql plpgsql tsql mssql plsql oracle duckdb bigquery"
    " snowflake".split()
)
WORKER = Killable("verifiers._sql_worker:rows_of", cpu_s=1.0, memory_mb=400)
DEADLINE_S = 2.0
# possessive: what a comment has taken is not taken again in another way, or many of them would be tried for ever
_STARTS = re.compile(r"\s*+(?>--[^\n]*+\n\s*+|/\*.*?\*/\s*+)*+(?:select|with|values)\b", re.IGNORECASE | re.DOTALL)


class Task(TypedDict):
    schema: str | list[str]  # a script of CREATE and INSERT, or one for each database
    query: str  # the gold query
    ordered: NotRequired[bool]  # the order of rows counts; default: the gold query ends in an ORDER BY


class _TaskError(ValueError):
    """The task's own script or query does not run."""


def verify(completion: str, task: Task) -> Verdict:
    schemas = [task["schema"]] if isinstance(task["schema"], str) else list(task["schema"])
    gold_query = task["query"]
    order = order_of(gold_query)
    ordered = task.get("ordered", order is not None)
    block = extract.last_block(extract.answer(completion), LANGUAGES, starts=_STARTS) or ""
    query = block.strip().removesuffix("```").strip()
    if not query or len(query) > MAX_CHARS or not _STARTS.match(query):
        return malformed("no SELECT")
    if any(0xD800 <= ord(char) <= 0xDFFF or char == "\x00" for char in query):
        return malformed("characters no query holds")
    try:
        for schema in schemas:
            gold = _gold(schema, gold_query)
            found = WORKER.ask({"schema": schema, "query": query})
            if "refused" in found:
                return failed(found["refused"][:150])
            if not _same_rows(gold, found, ordered) and not (order and ordered and _ties(schema, gold, found, order)):
                return failed("another result")
    except Killed:
        return failed("over its limit of CPU time or memory")
    except Stalled as exc:
        return broken(str(exc))
    return passed()


@lru_cache(maxsize=2048)
def _gold_text(schema: str, query: str) -> str:
    try:
        found = WORKER.ask({"schema": schema, "query": query})
    except (Killed, ValueError) as exc:
        raise _TaskError(f"the task's own query or schema: {exc}") from None
    if "refused" in found:
        raise _TaskError(f"the task's own query: {found['refused']}")
    return json.dumps(found)


def _gold(schema: str, query: str) -> dict[str, Any]:
    return json.loads(_gold_text(schema, query))


def _same_rows(gold: dict[str, Any], found: dict[str, Any], ordered: bool) -> bool:
    if gold["columns"] != found["columns"] or len(gold["rows"]) != len(found["rows"]):
        return False
    if ordered:
        return all(_same_row(a, b) for a, b in zip(gold["rows"], found["rows"], strict=True))
    return _are_among(found["rows"], gold["rows"])


def _ties(schema: str, gold: dict[str, Any], found: dict[str, Any], order: Order) -> bool:
    """Whether the rows differ from the gold's only where its ORDER BY leaves it open."""
    if gold["columns"] != found["columns"] or len(gold["rows"]) != len(found["rows"]) or not order.ranked_query:
        return False
    try:
        ranked = json.loads(_gold_text(schema, order.ranked_query))["rows"]
    except _TaskError:  # a query that cannot be ranked so: its order is taken as it is
        return False
    groups = [list(group) for _, group in itertools.groupby(ranked, key=lambda row: _key(row[-1:]))]
    start, rows = 0, found["rows"]
    for group in groups:
        first, last = max(start, order.offset), min(start + len(group), order.offset + len(rows))
        part = rows[first - order.offset : max(first, last) - order.offset]
        if not _are_among(part, [row[:-1] for row in group]):
            return False
        start += len(group)
    return start >= order.offset + len(rows)


def _are_among(rows: list[Any], wanted: list[Any]) -> bool:
    """Whether each row is another one of the wanted, floats within their tolerance."""
    given, there = Counter(map(_key, rows)), Counter(map(_key, wanted))
    if given == there:
        return True
    left = [json.loads(key) for key in sorted((given - there).elements())]
    right = [json.loads(key) for key in sorted((there - given).elements())]
    if len(left) > MAX_PAIRED:
        return len(left) == len(right) and all(map(_same_row, left, right))
    for row in left:
        index = next((i for i, other in enumerate(right) if _same_row(row, other)), None)
        if index is None:
            return False
        del right[index]
    return True


def _key(row: list[Any]) -> str:
    return json.dumps(row)


def _same_row(left: list[list[Any]], right: list[list[Any]]) -> bool:
    return all(_same_cell(a, b) for a, b in zip(left, right, strict=True))


def _same_cell(left: list[Any], right: list[Any]) -> bool:
    if left[0] == right[0] == "number":
        return math.isclose(left[1], right[1], rel_tol=FLOAT_TOLERANCE, abs_tol=ZERO_TOLERANCE)
    return left == right


_SCHEMA = """CREATE TABLE pets (id INTEGER PRIMARY KEY, name TEXT, kind TEXT, age REAL);
INSERT INTO pets VALUES (1, 'Ada', 'cat', 3), (2, 'Bob', 'dog', 5), (3, 'Cid', 'cat', 7.5), (4, 'Dee', NULL, 1);"""
_OTHER = """CREATE TABLE pets (id INTEGER PRIMARY KEY, name TEXT, kind TEXT, age REAL);
INSERT INTO pets VALUES (1, 'Eve', 'dog', 2), (2, 'Fay', 'cat', 4), (3, 'Gus', 'dog', 6);"""
_CATS = {"schema": [_SCHEMA, _OTHER], "query": "SELECT name FROM pets WHERE kind = 'cat'"}
_COMMONEST = {"schema": _SCHEMA, "query": "SELECT kind, COUNT(*) FROM pets GROUP BY kind ORDER BY COUNT(*) DESC"}
_OLDEST = {"schema": _SCHEMA, "query": "SELECT name, age FROM pets ORDER BY age DESC"}
EXAMPLES = (
    Example("right", "```sql\nSELECT p.name FROM pets AS p WHERE p.kind LIKE 'cat' ORDER BY age DESC;\n```", _CATS),
    Example("right", "WITH c AS (SELECT * FROM pets WHERE kind = 'cat') SELECT name FROM c", _CATS),
    Example("right", "<think>SELECT 1</think>select name, age from pets order by -age", _OLDEST),
    Example("right", "SELECT AVG(age) FROM pets", {"schema": _SCHEMA, "query": "SELECT SUM(age) / 4 FROM pets"}),
    Example("wrong", "SELECT name FROM pets", _CATS),
    Example("wrong", "SELECT 'Ada' UNION SELECT 'Cid'", _CATS),
    Example("wrong", "SELECT name, age FROM pets ORDER BY age", _OLDEST),
    Example("wrong", "SELECT kind, COUNT(*) FROM pets GROUP BY kind ORDER BY COUNT(*)", _COMMONEST),
    Example("right", "SELECT kind, COUNT(id) AS n FROM pets GROUP BY kind ORDER BY n DESC", _COMMONEST),
    Example("wrong", "SELECT nome FROM pets", _CATS),
    Example("wrong", "SELECT name, kind FROM pets WHERE kind = 'cat'", _CATS),
    Example("malformed", "", _CATS),
    Example("malformed", "The cats are Ada and Cid.", _CATS),
    Example("right", f"```text\npets(id)\n```\nSo:\n```sql\n{_CATS['query']}\n```\nIt reads `kind`.", _CATS),
    Example("malformed", f"<think>perhaps\n```sql\n{_CATS['query']}\n```\nbut wait", _CATS),
    Example("hostile", "/**/" * 4000 + "x", _CATS),
    Example("hostile", "SELECT name FROM pets WHERE kind = 'cat'; DROP TABLE pets", _CATS),
    Example("hostile", "DELETE FROM pets", _CATS),
    Example("hostile", "WITH d AS (SELECT 1) DELETE FROM pets", _CATS),
    Example("hostile", "SELECT load_extension('/tmp/x.so')", _CATS),
    Example("hostile", "ATTACH '/etc/passwd' AS p", _CATS),
    Example("hostile", "SELECT sql FROM sqlite_master", _CATS),
    Example("hostile", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n", _CATS),
    Example("hostile", "SELECT hex(zeroblob(1000000000))", _CATS),
    Example("hostile", "SELECT printf('%1000000000d', 1)", _CATS),
    Example("hostile", "SELECT name FROM pets WHERE kind = 'cat' UNION ALL " * 40 + "SELECT 1", _CATS),
    Example("hostile", "SELECT " + "(" * 5000 + "1" + ")" * 5000, _CATS),
)
