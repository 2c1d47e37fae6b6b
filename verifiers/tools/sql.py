"""SQL on the task's own SQLite database, read only, in a process with limits on steps, rows, CPU and memory.

A task gives `schema`: a script of CREATE and INSERT statements. The database is built from it for every query, so no
call can change what a later one reads.
"""

from __future__ import annotations

from typing import Any

from verifiers._killable import Killable, Killed, Stalled
from verifiers.tools import ToolBroken, ToolError, ToolExample

MAX_CHARS = 20_000
DEADLINE_S = 3.0
WORKER = Killable("verifiers._sql_worker:rows_of", cpu_s=1.0, memory_mb=400)


class Session:
    """max_rows: rows of a result that are shown."""

    def __init__(self, *, max_rows: int = 50) -> None:
        self._max_rows = max_rows
        self._schema = ""

    def reset(self, schema: str | list[str] = "") -> None:
        """Several databases with one schema are the verifier's, to catch guesses; the model queries the first."""
        self._schema = schema if isinstance(schema, str) else schema[0]

    def sql(self, query: str) -> str:
        """Run a SELECT query on the SQLite database; returns the rows, one a line, columns separated by |.

        The tables are listed by SELECT sql FROM sqlite_master.

        Args:
            query: The query to run.
        """
        if len(query) > MAX_CHARS:
            raise ToolError(f"the query is longer than {MAX_CHARS} characters")
        if any(0xD800 <= ord(char) <= 0xDFFF or char == "\x00" for char in query):
            raise ToolError("the query contains characters that SQL cannot hold")
        try:
            found = WORKER.ask({"schema": self._schema, "query": query})
        except Killed:
            raise ToolError("the query took too much time or memory") from None
        except (Stalled, ValueError) as exc:  # ValueError: the task's own script does not run
            raise ToolBroken(str(exc)) from exc
        if "refused" in found:
            raise ToolError(str(found["refused"]))
        return table(found["names"], found["rows"], self._max_rows)


def table(names: list[str], rows: list[list[Any]], max_rows: int) -> str:
    """rows: cells as [kind, value]."""
    lines = ["|".join(names), *("|".join(_shown(*cell) for cell in row) for row in rows[:max_rows])]
    if not rows:
        lines.append("(no rows)")
    if len(rows) > max_rows:
        lines.append(f"[{len(rows) - max_rows} more rows]")
    return "\n".join(lines)


def _shown(kind: str, value: Any) -> str:
    if kind == "null":
        return "NULL"
    return f"x'{value}'" if kind == "blob" else str(value)


_PETS = {
    "schema": """CREATE TABLE pets (name TEXT, kind TEXT, age REAL);
INSERT INTO pets VALUES ('Ada', 'cat', 3), ('Bob', 'dog', 5), ('Cid', NULL, 7.5);"""
}
EXAMPLES = (
    ToolExample("right", [{"query": "SELECT name, age FROM pets WHERE age > 4"}], "name|age\nBob|5\nCid|7.5", _PETS),
    ToolExample("right", [{"query": "SELECT kind FROM pets WHERE name = 'Cid'"}], "kind\nNULL", _PETS),
    ToolExample("right", [{"query": "SELECT name FROM pets WHERE age > 9"}], "name\n(no rows)", _PETS),
    ToolExample("right", [{"query": "SELECT name FROM pets"}], "name\nAda\n[2 more rows]", _PETS, {"max_rows": 1}),
    ToolExample("right", [{"query": "SELECT name FROM sqlite_master"}], "name\npets", _PETS),
    ToolExample("mistake", [{"query": "SELECT nome FROM pets"}], "no such column: nome", _PETS),
    ToolExample("mistake", [{"query": "DELETE FROM pets"}], "not authorized", _PETS),
    ToolExample("hostile", [{"query": "ATTACH '/etc/passwd' AS p"}], "", _PETS),
    ToolExample("hostile", [{"query": "SELECT load_extension('/tmp/x.so')"}], "", _PETS),
    ToolExample("hostile", [{"query": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT * FROM n"}],
            "", _PETS),
    ToolExample("hostile", [{"query": "SELECT hex(zeroblob(1000000000))"}], "", _PETS),
)  # fmt: skip
