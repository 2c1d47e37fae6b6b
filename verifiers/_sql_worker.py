"""What the killable process of sql_query.py runs: untrusted SELECTs on a database in memory, read only.

SQLite's own guards bound a query the same way each time: an authorizer (reading, and harmless functions, are all there
is), a budget of virtual-machine steps, and limits on lengths. The process's CPU and memory limits are the second line.
"""

from __future__ import annotations

import sqlite3
from typing import Any

STEPS_PER_CALL = 1000
MAX_CALLS = 3000  # of the progress handler: 3 million steps
MAX_ROWS = 2000
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 30,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
# what depends on chance, the clock or this process, or reaches outside
FORBIDDEN = frozenset(
    "random randomblob load_extension readfile writefile edit fts3_tokenizer sqlite_version sqlite_source_id"
    " sqlite_compileoption_used sqlite_compileoption_get sqlite_log changes total_changes last_insert_rowid"
    " current_date current_time current_timestamp".split()
)


def _authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action in READING:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in FORBIDDEN:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def rows_of(request: dict[str, str]) -> dict[str, Any]:
    """{"schema": SQL script, "query": one SELECT} -> {"columns": n, "names": [...], "rows": [...]} or {"refused": why}.

    The script is the task's, and trusted; an error in it is raised. An error of the query is an answer.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(request["schema"])
        for limit, most in LIMITS.items():
            connection.setlimit(limit, most)
        connection.set_authorizer(_authorize)
        calls = 0

        def step() -> int:
            nonlocal calls
            calls += 1
            return int(calls > MAX_CALLS)

        connection.set_progress_handler(step, STEPS_PER_CALL)
        try:
            cursor = connection.execute(request["query"])
            rows = cursor.fetchmany(MAX_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as exc:
            return {"refused": f"{type(exc).__name__}: {exc}"}
        if cursor.description is None:
            return {"refused": "not a query"}
        if len(rows) > MAX_ROWS:
            return {"refused": f"more than {MAX_ROWS} rows"}
        names = [column[0] for column in cursor.description]
        return {"columns": len(names), "names": names, "rows": [[_plain(cell) for cell in row] for row in rows]}
    finally:
        connection.close()


def _plain(cell: Any) -> list[Any]:
    """A cell as [type, value], so that '1', 1 and x'31' stay different; 1 and 1.0 are one number."""
    if isinstance(cell, bytes):
        return ["blob", cell.hex()]
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return ["number", int(cell)]
    kind = "text" if isinstance(cell, str) else "null" if cell is None else "number"
    return [kind, cell]
