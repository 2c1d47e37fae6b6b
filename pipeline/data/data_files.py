"""Files and folders of rows, and data sets of the Hub, read to the same values whichever way they come.

JSONL, JSON and Parquet, each also gzipped where it is text. Rows of JSONL that is not compressed stay in the file
(`pipeline.data.lazy_rows`); all others are read into memory. A folder is read as the Hub reads a repository: a file
belongs to the split that its name or its folder says (`train-00000-of-00002.parquet`, `data/test.jsonl`, `dev/0.json`).
"""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.config.load import ConfigError
from pipeline.config.mistakes import near_path
from pipeline.data.columns import DataRow, Row
from pipeline.data.lazy_rows import JoinedRows, RowView, jsonl_rows, parse_line

SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
SPLITS = {  # split -> words of a file's or folder's name, as `datasets` reads them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SLICE = re.compile(r"(?P<split>[^\[\]]+)\[(?P<start>-?\d*):(?P<stop>-?\d*)\]")


def is_file_name(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


def read_rows(path: str, split: str, name: str | None, where: str) -> Sequence[Row]:
    """All rows of a file, of a folder's split, or of a Hub data set's split. Raises ConfigError naming the key."""
    source = Path(path)
    if not is_file_name(path) and not source.exists():
        return _read_hub(path, split, name, where)
    if not source.exists():
        raise ConfigError([f"{where}.path: {path} does not exist{near_path(source) or searched(source)}"])
    wanted, part = _slice(split, where)
    if source.is_file():
        _refuse_split_of_file(source, wanted, where)
        rows = _read_file(source)
    else:
        rows = _joined([_read_file(file) for file in split_files(source, wanted, name, where)])
    return rows if part == slice(None) else rows[part]


def _joined(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def searched(path: Path) -> str:
    """The end of a line about a path that does not exist: the directory that was searched."""
    folder = path.absolute().parent
    return f" in {folder}" if folder.is_dir() else f": there is no directory {folder}"


def _slice(split: str, where: str) -> tuple[str, slice]:
    """`train[10:20]` -> the split and the rows of it."""
    if "[" not in split:
        return split, slice(None)
    found = SLICE.fullmatch(split)
    if not found:
        raise ConfigError([f"{where}.split: {split!r}: of files, a part is read as train[:100] or train[10:20]"])
    return found["split"], slice(*(int(found[end]) if found[end] else None for end in ("start", "stop")))


def _refuse_split_of_file(path: Path, wanted: str, where: str) -> None:
    own = split_of(path, path.parent)
    if canonical(wanted) != "train" and canonical(wanted) != own:
        raise ConfigError([f"{where}.split: {path} is one file and has no split {wanted!r}; give the folder, or name "
                           "the file with heldout_path"])  # fmt: skip


def canonical(split: str) -> str:
    """train for training, validation for dev, ..."""
    return next((name for name, words in SPLITS.items() if split.lower() in words), split)


def split_of(path: Path, root: Path) -> str | None:
    """The split that a file's name says, else a folder between it and root; None where nothing does."""
    for part in reversed(path.relative_to(root).parts):
        words = re.split(r"[-._ \d/]+", part.lower())
        for name, known in SPLITS.items():
            if any(word in known for word in words):
                return name
    return None


def split_files(folder: Path, split: str, name: str | None, where: str) -> list[Path]:
    """The files of a folder that hold this split. Files that name no split are `train`, where no file names one."""
    if name is not None:
        if not (folder / name).is_dir():
            have = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "none"
            raise ConfigError([f"{where}.name: {folder} has no folder {name!r}; have: {have}"])
        folder = folder / name
    files = sorted(p for p in folder.rglob("*") if p.is_file() and is_file_name(p.name) and not _hidden(p, folder))
    files = [p for p in files if p.name not in ("dataset_infos.json", "dataset_info.json", "state.json")]
    if not files:
        raise ConfigError([f"{where}.path: no .jsonl, .json or .parquet file in {folder}"])
    named = {path: split_of(path, folder) for path in files}
    if not any(named.values()):
        named = dict.fromkeys(files, "train")
    chosen = [path for path, own in named.items() if own == canonical(split)]
    if not chosen:
        have = ", ".join(sorted({own for own in named.values() if own}))
        raise ConfigError([f"{where}.split: no file of split {split!r} in {folder}; have: {have}"])
    unnamed = [path.name for path, own in named.items() if own is None]
    if unnamed:
        raise ConfigError([f"{where}.path: {folder} has files of named splits and {unnamed[0]}, which names none; "
                           "move it, or name one file as the path"])  # fmt: skip
    return chosen


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)


# --- one file -------------------------------------------------------------------------------------------------------


def _read_file(path: Path, known_as: str | None = None) -> Sequence[Row]:
    """known_as: its name, where the path is a cache's."""
    name = (known_as or str(path)).lower()
    shown = known_as or str(path)
    if name.endswith(TABLES):
        raise ConfigError([f"{path}: CSV is not read; write it as Parquet or JSONL, such as with "
                           "datasets.Dataset.from_csv(\"x.csv\").to_json(\"x.jsonl\")"])  # fmt: skip
    if name.endswith(".parquet"):
        return _named(_parquet(path), shown)
    if not name.endswith((".json", ".json.gz")):
        return _json_lines(path, shown)
    try:
        with opened(path) as file:
            rows = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, OSError, EOFError) as exc:  # of the JSON, its encoding or its compression
        if isinstance(exc, json.JSONDecodeError) and exc.msg == "Extra data":
            return _json_lines(path, shown)
        raise ConfigError([f"{path}: not JSON in UTF-8: {exc}"]) from exc
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    if not isinstance(rows, list):
        raise ConfigError([f"{path}: expected a list of rows; one object a line is .jsonl"])
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ConfigError([f"{path}: row {number}: expected an object, found {type(row).__name__}"])
    return _named(rows, shown)


def _json_lines(path: Path, shown: str) -> Sequence[Row]:
    try:
        if not is_packed(path):
            return jsonl_rows(path, shown)
    except OSError as exc:
        raise ConfigError([f"{path}: not readable: {exc}"]) from exc
    return _named((row for _, row in numbered_rows(path)), shown)


def _named(rows: Iterable[Mapping[str, Any]], shown: str) -> list[Row]:
    """The rows, each with the name that messages give it."""
    return [DataRow(row, f"row {number} of {shown}") for number, row in enumerate(rows, 1)]


def is_packed(path: Path) -> bool:
    """Whether the first two bytes are gzip's."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def opened(path: Path) -> BinaryIO:
    """The file in bytes, unpacked where it is gzip's."""
    return cast(BinaryIO, gzip.open(path, "rb")) if is_packed(path) else path.open("rb")


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, object) of each line of a JSONL that is not empty. Raises ConfigError naming file and line."""
    number = 0
    try:
        with opened(path) as lines:  # in bytes, whose only line ends are the file's: text may hold U+2028 or U+0085
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                try:
                    row = parse_line(line, first=number == 1)
                except ValueError as exc:
                    raise ConfigError([f"{path}:{number}: {exc}"]) from exc
                yield number, row
    except (OSError, EOFError) as exc:  # gzip's own: BadGzipFile is an OSError
        raise ConfigError([f"{path}: not readable after line {number}: {exc}"]) from exc


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as exc:  # pyarrow's errors have no common parent
        raise ConfigError([f"{path}: not readable as Parquet: {' '.join(str(exc).split())}"]) from exc
    return [plain(row) for row in rows]


def plain(row: Mapping[str, Any]) -> Row:
    """Values as JSON holds them, without what Arrow adds: all structs of a list share one set of fields there, and
    what a struct does not have is filled with nulls (a tool call then has the arguments of every other tool)."""
    return {name: _plain(value, inside_list=False) for name, value in row.items()}


def _plain(value: Any, *, inside_list: bool) -> Any:
    if isinstance(value, Mapping):
        fields = {name: _plain(field, inside_list=inside_list) for name, field in value.items()}
        return {name: field for name, field in fields.items() if field is not None or not inside_list}
    if isinstance(value, (list, tuple)):
        return [_plain(item, inside_list=True) for item in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal) else value


# --- the Hub --------------------------------------------------------------------------------------------------------


def _read_hub(path: str, split: str, name: str | None, where: str) -> Sequence[Row]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(path, name)
        files = hub_files(builder, split)
        if files is not None:
            return _joined([_read_file(file, known_as) for file, known_as in files])
        rows = datasets.load_dataset(path, name, split=split)
        return RowView(rows, change=lambda row, number: DataRow(plain(row), f"row {number} of {path}"))
    except ConfigError:
        raise
    except Exception as exc:  # the Hub, the network and data sets' own code fail in many ways
        reason = " ".join(str(exc).split())[:200]
        raise ConfigError(
            [f"{where}.path: {path!r} is no local file and could not be read from the Hub: {reason}"]
        ) from exc


def hub_files(builder: Any, split: str) -> list[tuple[Path, str]] | None:
    """(downloaded path, name) of a split's files, where all are of kinds that we read; None for others.

    `datasets` reads JSON with pandas' guesses: "2024-01-02" becomes a datetime, "0.50" beside numbers 0.5. The files
    themselves are read as they are on disk.
    """
    import datasets

    by_split = builder.config.data_files or {}
    files: Sequence[str] = [str(file) for file in by_split.get(split, ())]
    if not files or not all(is_file_name(file) for file in files) or getattr(builder.config, "field", None):
        return None
    manager = datasets.DownloadManager(dataset_name=builder.dataset_name, data_dir=builder.config.data_dir)
    return [(Path(manager.download(file)), file) for file in files]


__all__ = ["canonical", "hub_files", "is_file_name", "numbered_rows", "opened", "plain", "read_rows", "split_files"]
