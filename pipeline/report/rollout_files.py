"""The rollouts of a large run: what is filtered and sorted by goes into the page, the rest into files next to it.

The page loads such a file, a few megabytes, when one of its rows is looked at. Only one file's rows are in memory while
it is written, so that memory does not grow with the number of rollouts on disk.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pipeline.report import rollouts
from pipeline.report.page import safe_json
from pipeline.report.rollouts import Row, Table

FOLDER = "report_data"
ROWS = 2_000  # per file, at most
CHARACTERS = 2_000_000  # of JSON, after which a file is closed
TEXTS = ("prompt", "expected", "detail", "completion", "conversation")
MISSING = float("nan")


class RolloutIndex:
    """What the page keeps of each row: small numbers, in arrays of 4 bytes each."""

    def __init__(self) -> None:
        self.tables = {name: Table() for name in ("stage", "source", "status", "label")}
        self.coded = {name: array("i") for name in (*self.tables, "prompt")}
        self.prompts: dict[bytes, int] = {}  # digest of a prompt's text -> its number
        self.whole = {name: array("i") for name in ("sample", "step", "length", "finished")}
        self.numbers = {name: array("d") for name in ("reward", "mean_logprob")}
        self.parts: dict[str, array[float]] = {}
        self.count = 0

    def add(self, row: Row) -> None:
        values = {"stage": row["stage"], "source": rollouts.source_of(row), "status": str(row.get("status", "")),
                  "label": str(row.get("asked", ""))}  # fmt: skip
        for name, table in self.tables.items():
            self.coded[name].append(table.index_of(values[name]))
        digest = blake2b(str(row.get("prompt", "")).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.coded["prompt"].append(self.prompts.setdefault(digest, len(self.prompts)))
        length = len(row.get("ids") or [])
        plain = {"sample": row.get("sample"), "step": rollouts.step_of(row), "length": length,
                 "finished": bool(row.get("finished"))}  # fmt: skip
        for name, value in plain.items():
            fits = isinstance(value, int) and abs(value) < 2**31
            self.whole[name].append(int(value) if fits else rollouts.ABSENT)  # type: ignore[arg-type]
        self.numbers["reward"].append(_number(rollouts.rounded(row.get("reward"))))
        known = [v for v in rollouts.thousandths(row.get("logprobs"), length) if v != rollouts.ABSENT]
        self.numbers["mean_logprob"].append(round(sum(known) / len(known), 1) if known else MISSING)
        parts = row.get("parts") or {}
        for name in parts.keys() - self.parts.keys():
            self.parts[name] = array("d", [MISSING]) * self.count
        for name, column in self.parts.items():
            column.append(_number(rollouts.rounded(parts.get(name))))
        self.count += 1

    def columns(self) -> dict[str, Any]:
        """As `rollouts.columns`, without texts and tokens."""
        plain = {name: [None if v == rollouts.ABSENT else v for v in column] for name, column in self.whole.items()}
        return {
            "count": self.count,
            "tables": {name: table.values for name, table in self.tables.items()},
            "coded": {name: column.tolist() for name, column in self.coded.items()},
            "parts": {name: _short(column) for name, column in self.parts.items()},
            **{name: _short(column) for name, column in self.numbers.items()},
            **plain,
        }


def _number(value: float | None) -> float:
    return MISSING if value is None else value


def _short(column: Iterable[float]) -> list[float | None]:
    """Whole numbers without their `.0`: most rewards are 0 or 1."""
    return [None if v != v else int(v) if v == int(v) else v for v in column]


def write(
    rows: Iterable[Row], token_text: Callable[[str, int], str], directory: Path, *, version: str
) -> dict[str, Any]:
    """Write the rows into directory/report_data and return the page's columns, which name the files.

    version: goes into the names, so that a page that is open keeps its own files until the new page is written.
    """
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    index, files, waiting, size = RolloutIndex(), list[list[Any]](), list[Row](), 0

    def close() -> None:
        name = f"{version}-{len(files):04}.js"
        (folder / name).write_text(script(len(files), details(waiting, token_text)), encoding="ascii")
        files.append([name, index.count - len(waiting)])
        waiting.clear()

    for row in rows:
        index.add(row)
        waiting.append(row)
        size += (
            500
            + len(str(row.get("completion", "")))
            + 30 * len(row.get("ids") or [])
            + len(str(row.get("episode", "")))
        )
        if len(waiting) >= ROWS or size >= CHARACTERS:
            close()
            size = 0
    if waiting:
        close()
    return {**index.columns(), "files": files, "folder": FOLDER}


def details(rows: list[Row], token_text: Callable[[str, int], str]) -> dict[str, Any]:
    """Texts, tokens and their figures of one file's rows."""
    found = rollouts.columns(rows, token_text, tokens=None, text=None)
    kept = {name: found[name] for name in ("tokens", "words", "ids", "per_token", "absent")}
    return {**kept, **{part: {name: found[part][name] for name in TEXTS} for part in ("tables", "coded")}}


def script(number: int, value: Any) -> str:
    """A script that hands its rows to the page: a call with a literal, in which no text of a run can be code."""
    return f"whetstoneRows({number},{safe_json(value)});\n"


def remove_others(directory: Path, *, version: str) -> None:
    """Delete the files of earlier pages."""
    for path in (directory / FOLDER).glob("*.js"):
        if not version or not path.name.startswith(f"{version}-"):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not empty, or was never there
        (directory / FOLDER).rmdir()
