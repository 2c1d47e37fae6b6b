"""Sequences of rows that stay in their file: the index of where each line begins is in memory, a row is parsed when it
is read, and a part of the rows (a split, a slice, a stage's selection) is an array of row numbers.

An index takes 8 bytes per row and one pass over the file, which a process makes once per file.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.config.load import ConfigError
from pipeline.data.columns import DataRow, Row

T = TypeVar("T")
KEPT_BYTES = 64 << 20  # of encoded rows per sequence
OPEN_FILES = 32  # of all sequences of a process; a data set may have more shards than a process may open files
BLOCK = 1 << 20


def parse_line(line: bytes, *, first: bool) -> Row:
    """The object of one line of JSONL. first: of the file, where a byte order mark may stand. Raises ValueError."""
    try:
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as exc:
        raise ValueError(f"not UTF-8: {exc.reason}") from exc
    except json.JSONDecodeError as exc:
        raise ValueError(f"not JSON: {_json_fault(exc, first=first)}") from exc
    if first and isinstance(row, list):
        raise ValueError("expected an object, found list; a file that holds one JSON list of rows is named .json")
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    return row


def _json_fault(exc: json.JSONDecodeError, *, first: bool) -> str:
    """What is wrong with a line, and the fix where the kind of mistake is known."""
    if first and exc.doc.lstrip("\ufeff \t").startswith("["):
        return f"{exc.msg}; a file that holds one JSON list of rows is named .json"
    after = exc.doc[exc.pos :].strip()
    if exc.msg == "Extra data":
        return "a comma after the object; remove it" if after == "," else "more than one value in the line"
    return exc.msg


class LazyRows(Sequence[Row]):
    """Rows that are produced when they are read, each time as new objects. Equal to any sequence of equal rows."""

    @abstractmethod
    def row(self, index: int) -> Row:
        """Row `index`, 0 <= index < len(self)."""

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """Results of passes over all rows, so that each pass is made once per process."""
        return {}

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> RowView: ...
    def __getitem__(self, index: int | slice) -> Row | RowView:
        if isinstance(index, slice):
            return RowView(self, np.arange(len(self))[index])
        return self.row(range(len(self))[index])

    def __iter__(self) -> Iterator[Row]:
        return map(self.row, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class RowView(LazyRows):
    """Some rows of `base`. indices: (N,) row numbers, None for all; change: what is made of (row, its number from 1)
    when it is read."""

    def __init__(
        self, base: Sequence[Row], indices: NDArray[np.integer] | None = None,
        change: Callable[[Row, int], Row] | None = None,
    ) -> None:  # fmt: skip
        self.base, self.indices, self.change = base, indices, change

    def __len__(self) -> int:
        return len(self.base if self.indices is None else self.indices)

    def row(self, index: int) -> Row:
        row = self.base[index if self.indices is None else int(self.indices[index])]
        return row if self.change is None else self.change(row, index + 1)


class JoinedRows(LazyRows):
    """The rows of several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self.parts = parts
        self.starts = [0]
        for part in parts:
            self.starts.append(self.starts[-1] + len(part))

    def __len__(self) -> int:
        return self.starts[-1]

    def row(self, index: int) -> Row:
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]


class Rebuilt(Sequence[T]):
    """Items that are built from rows each time they are read, except for the first ones, which are kept as far as
    KEPT_BYTES go: a small data set is encoded once."""

    def __init__(self) -> None:
        self.kept: list[T] = []
        self.room = KEPT_BYTES  # while it is positive the next item is kept

    @abstractmethod
    def build(self, index: int) -> T:
        """Item `index`, 0 <= index < len(self)."""

    def in_memory(self) -> Sequence[T]:
        """The items as a list if all of them are kept, else this sequence."""
        return self.kept if len(self.kept) == len(self) else self

    def keep(self, item: T, size: int) -> None:
        """Keep the next item, of about `size` bytes."""
        self.kept.append(item)
        self.room -= size

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return self.kept[index] if index < len(self.kept) else self.build(index)


class Mapped(Sequence[T]):
    """`change` of each item of `base`, computed each time it is read."""

    def __init__(self, base: Sequence[Any], change: Callable[[Any], T]) -> None:
        self.base, self.change = base, change

    def __len__(self) -> int:
        return len(self.base)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.change(item) for item in self.base[index]]
        return self.change(self.base[index])


# --- JSONL ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells two contents of a path apart."""

    size: int
    modified_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> FileState:
        return cls(stat.st_size, stat.st_mtime_ns)


class _Descriptor:
    """A file open for reading, closed with its last reader. Threads and forked processes share it: it has no position
    that they would move."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=OPEN_FILES)
def _descriptor(path: Path, state: FileState) -> _Descriptor:
    return _Descriptor(path)


class JsonlRows(LazyRows):
    """The rows of a JSONL file that is not compressed, without its empty lines. known_as: its name in errors.

    Raises ConfigError naming file and line where a line is read that is no JSON object, and where the file has changed
    since it was indexed.
    """

    def __init__(self, path: Path, known_as: str) -> None:
        self.path, self.known_as = path, known_as
        self.file = path.absolute()  # where the program's directory changes
        self.state = FileState.of(path.stat())
        self.starts = array("q")
        position = 0
        with path.open("rb", buffering=BLOCK) as lines:
            for line in lines:
                if not line.isspace():
                    self.starts.append(position)
                position += len(line)
        self.end = position

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int) -> Row:
        start = self.starts[index]
        end = self.starts[index + 1] if index + 1 < len(self.starts) else self.end
        try:
            # the next row may be some empty lines away
            return DataRow(parse_line(self._read(start, end).partition(b"\n")[0], first=start == 0),
                           f"row {index + 1} of {self.known_as}")  # fmt: skip
        except ValueError as exc:
            if isinstance(exc, ConfigError):
                raise
            raise ConfigError([f"{self.path}:{self._line_number(start)}: {exc}"]) from exc

    def _read(self, start: int, end: int) -> bytes:
        try:
            file = _descriptor(self.file, self.state)
            same = FileState.of(os.fstat(file.number)) == self.state
            data = os.pread(file.number, end - start, start) if same else b""
        except OSError as exc:
            raise ConfigError([f"{self.path}: not readable: {exc}"]) from exc
        if len(data) < end - start:
            raise ConfigError([f"{self.path}: the file has changed since this run began to read it; restore it, or "
                               "run the command again with the new file"])  # fmt: skip
        return data

    def _line_number(self, start: int) -> int:
        """Number of the line that begins at byte `start`, from 1."""
        with self.file.open("rb") as file:
            return 1 + sum(file.read(min(BLOCK, start - at)).count(b"\n") for at in range(0, start, BLOCK))


@lru_cache(maxsize=1024)
def _indexed(path: Path, known_as: str, file: Path, state: FileState) -> JsonlRows:
    return JsonlRows(path, known_as)


def jsonl_rows(path: Path, known_as: str) -> JsonlRows:
    """The rows of a JSONL file; the same object, with its index, as long as the file is the same."""
    return _indexed(path, known_as, path.absolute(), FileState.of(path.stat()))
