"""Dataset rows -> Prompts: one function reads every source, one renders, one splits.

The held-out split is a function of the prompt's text alone, so a prompt that is held out is held out of every stage
and every data set of a run: SFT rows, preference pairs and rollouts all pass `split`.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import verifiers
from pipeline.config.load import ConfigError, nearest
from pipeline.config.schema import Prime, Prompts
from pipeline.data import columns, data_files, formats
from pipeline.data.columns import DataRow, Row
from pipeline.data.data_files import is_file_name, numbered_rows, searched
from pipeline.data.decontamination import contaminated
from pipeline.data.lazy_prompts import LazyPrompts, TaskCheck, longest
from pipeline.data.lazy_rows import JoinedRows, LazyRows, RowView
from pipeline.data.prompt_columns import completion_value, has_completion, prompt_text, prompt_value, task_of
from pipeline.data.prompt_keys import POINTS, TextSet, encoded, prompt_keys
from pipeline.distributed.notices import notice
from pipeline.records import Prompt
from pipeline.seeds import derive
from rewards.source_parts import SOURCE
from verifiers.tools._prime import PrimeEnvironment


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on, rows for the reported figures, and rows by which a stage chooses the step that it saves."""

    train: Sequence[Row]
    heldout: Sequence[Row]
    validation: Sequence[Row] = field(default_factory=list)


# --- reading --------------------------------------------------------------------------------------------------------


def load_rows(source: Prompts, *, seed: int, where: str = "prompts", dirs: Sequence[str] = ()) -> Sequence[Row]:
    """All rows of a source, in order. Those of JSONL stay in the file and are parsed when they are read.

    Of several sources, one after another, each row with the columns prompt, completion, task and source.
    Raises ConfigError naming the file or key; one that names a line is raised when that row is read.
    """
    if source.sources:
        return JoinedRows([_rows_of_source(source, name, seed, where, dirs) for name in source.sources])
    if source.prime is not None:
        rows: Sequence[Row] = _prime_tasks(source.prime, source.rows, where)
    elif source.procedural:
        rows = _procedural(source, seed, where, dirs)
    elif source.path:
        rows = data_files.read_rows(source.path, source.split, source.name, where)
    else:
        raise ConfigError(
            [f"{where}: give path (JSONL, Parquet or Hub id), procedural (a verifier that makes tasks) or prime"]
        )
    rows = rows[: source.rows] if source.rows else rows
    if not rows:
        raise ConfigError([f"{where}: {source.label} has no rows"])
    name = source.format or _recognised(rows, source, where)
    return _converted(rows, name, source, where) if name not in (None, formats.PLAIN) else rows


def _rows_of_source(source: Prompts, name: str, seed: int, where: str, dirs: Sequence[str]) -> Sequence[Row]:
    """The rows of one of several sources, in the columns that all of them share."""
    own, where = source.of_source(name), f"{where}.sources.{name}"

    def change(row: Row, number: int) -> Row:
        columns_of: dict[str, Any] = {"prompt": prompt_value(row, own, number, where), SOURCE: name}
        if has_completion(row, own):
            columns_of["completion"] = completion_value(row, own, number=number, where=where)
        columns_of["task"] = {**task_of(row, own, number=number), SOURCE: name}
        columns_of |= {"tools": row["tools"]} if "tools" in row else {}
        return DataRow(columns_of, columns.origin(row, number, own.path or own.procedural))

    return RowView(load_rows(own, seed=seed, where=where, dirs=dirs), change=change)


def spread_over_sources(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first `count` prompts, taken from each source in turn; of one source, the first ones."""
    turns: dict[Any, int] = {}
    numbered = []
    for index, prompt in enumerate(prompts):
        source = prompt.task.get(SOURCE)
        numbered.append((turns.get(source, 0), index))
        turns[source] = turns.get(source, 0) + 1
    return [prompts[index] for _, index in sorted(sorted(numbered)[:count], key=lambda pair: pair[1])]


def _recognised(rows: Sequence[Row], source: Prompts, where: str) -> str | None:
    """The format that the rows' columns are of, where the YAML names neither a format nor columns of its own."""
    own = source.template is not None or source.prompt != "prompt" or source.completion != "completion"
    name = None if own or source.procedural or source.prime else formats.recognised(rows)
    if name:
        block = where.rpartition(": ")[2].removesuffix(".heldout_path").removesuffix(".heldout_split")
        key = f"{block}.format"
        notice(f"{source.path}: read as format {name!r}, by its columns; {key}: {name} fixes the choice, "
               f"{key}: {formats.PLAIN} reads the columns as they are")  # fmt: skip
    return name


def _converted(rows: Sequence[Row], name: str | None, source: Prompts, where: str) -> Sequence[Row]:
    """The rows that a verifier can judge, in our columns. All are converted once to find the others."""
    if name not in formats.FORMATS:
        raise ConfigError([f"{where}.format: no format {name!r}{nearest(str(name), formats.FORMATS)}"])
    change = partial(_in_our_columns, name=str(name), label=source.label, where=where)
    key = ("converted", name)
    if isinstance(rows, LazyRows) and key in rows.memo:
        return rows.memo[key]
    judged, left_out = array("q"), Counter[str]()
    for number, row in enumerate(rows, 1):
        try:
            change(row, number)
            judged.append(number - 1)
        except formats.UnsupportedRow as exc:
            left_out[str(exc)] += 1
    if left_out:
        reasons = ", ".join(f"{what} ({count})" for what, count in left_out.most_common(8))
        line = f"{where}: left out {left_out.total()} of {len(rows)} rows, which no verifier can judge: {reasons}"
        if not judged:
            raise ConfigError([line])
        notice(line)
    converted = RowView(rows, change=change)
    out = RowView(converted, np.array(judged)) if left_out else converted
    if isinstance(rows, LazyRows):
        rows.memo[key] = out
    return out


def _in_our_columns(row: Row, number: int, *, name: str, label: str | None, where: str) -> Row:
    origin = columns.origin(row, number, label)
    try:
        return DataRow(formats.convert(row, name, origin=origin, where=where), origin)
    except formats.UnsupportedRow:
        raise
    except ValueError as exc:
        raise ConfigError([str(exc)]) from exc


def _prime_tasks(block: Prime, limit: int | None, where: str) -> list[Row]:
    try:
        rows = PrimeEnvironment(**asdict(block)).rows(limit)
    except ValueError as exc:
        raise ConfigError([f"{where}.prime: {exc}"]) from exc
    return [DataRow(row, f"task {number} of {block.taskset}") for number, row in enumerate(rows)]


def _procedural(source: Prompts, seed: int, where: str, dirs: Sequence[str]) -> list[Row]:
    try:
        verifier = verifiers.load(source.procedural or "", dirs)
    except ValueError as exc:
        raise ConfigError([f"{where}.procedural: {exc}"]) from exc
    if verifier.generate is None:
        raise ConfigError([f"{where}.procedural: verifier {verifier.name!r} cannot make tasks; it has no generate()"])
    return list(verifier.generate(source.rows or 1000, derive(seed, "rows", verifier.name)))


def named_heldout(source: Prompts, *, seed: int, where: str = "prompts", dirs: Sequence[str] = ()) -> Sequence[Row]:
    """Rows of the file or split that the block names to judge on; none where it names none."""
    if not source.heldout_path and not source.heldout_split:
        return []
    if not source.heldout_path and (source.procedural or source.prime or Path(source.path or "").is_file()):
        raise ConfigError([f"{where}.heldout_split: {source.label} has no splits; give the folder that holds them "
                           "as path, or name a file with heldout_path"])  # fmt: skip
    return load_rows(named_source(source), seed=seed, where=f"{where}.{heldout_key(source)}", dirs=dirs)


def named_source(source: Prompts) -> Prompts:
    """Where the rows to judge on come from: another file, or another split of the same data."""
    split = source.heldout_split or source.split
    if source.heldout_path and not source.heldout_split and Path(source.heldout_path).is_file():
        split = "train"  # of a file: all of it
    return replace(source, path=source.heldout_path or source.path, rows=None, split=split, heldout_path=None,
                   heldout_split=None, procedural=None if source.heldout_path else source.procedural,
                   prime=None if source.heldout_path else source.prime)  # fmt: skip


# --- splitting ------------------------------------------------------------------------------------------------------


def part_of(text: str, source: Prompts) -> str:
    """ "heldout", "validation" or "train", by a hash of the text: the same answer in every stage, run and process."""
    point = zlib.crc32(encoded(text)) % POINTS
    heldout, validation = _ends(source)
    return "heldout" if point < heldout else "validation" if point < validation else "train"


def _ends(source: Prompts) -> tuple[int, int]:
    """The points below which a prompt is held out, and below which it is one of the two."""
    return math.ceil(source.heldout * POINTS), math.ceil((source.heldout + source.validation) * POINTS)


def split(rows: Sequence[Row], source: Prompts, *, where: str = "prompts", heldout: Sequence[Row] = ()) -> Split:
    """Rows to train on, to evaluate on and to validate on. The rows `heldout` are evaluated on instead of those that
    the hash holds out.

    Neither are trained on: a prompt that is held out once stays so, whichever block names other rows to evaluate on.
    A notice counts the rows that are left out because rows to evaluate on are named.
    """
    rows = rows if isinstance(rows, LazyRows) else RowView(rows)
    keys, named = prompt_keys(rows, source, where=where), among(rows, heldout, source, where=where)
    before_heldout, before_validation = _ends(source)
    by_share = keys.points < before_heldout
    held = by_share | named
    if len(heldout) and not held.all():
        _report_left_out(int(named.sum()), int((by_share & ~named).sum()), len(rows), source, where)
    validated = ~held & (keys.points < before_validation)
    out = Split(*(RowView(rows, np.flatnonzero(own)) for own in (~held & ~validated, held, validated)))
    if source.decontaminate:
        out = _decontaminated(out, source, where, heldout)
    return replace(out, heldout=heldout or out.heldout)


def among(rows: Sequence[Row], heldout: Sequence[Row], source: Prompts, *, where: str = "prompts") -> NDArray[np.bool_]:
    """(N,) whether each row's prompt is one of the rows `heldout`."""
    return np.isin(prompt_keys(rows, source, where=where).hashes, prompt_keys(heldout, source).hashes)


def heldout_key(source: Prompts) -> str:
    """The key that says what is evaluated on."""
    return "heldout_path" if source.heldout_path else "heldout_split" if source.heldout_split else "heldout"


def _report_left_out(named: int, by_share: int, total: int, source: Prompts, where: str) -> None:
    key = heldout_key(source)
    if named:
        notice(f"{where}.{key}: {named} of {total} rows are not trained on, because their prompts are also in "
               f"{source.heldout_path or source.heldout_split}")  # fmt: skip
    if by_share:
        notice(f"{where}.heldout: {by_share} of {total} rows are neither trained nor evaluated on: the share "
               f"{source.heldout:g} holds them out, and {key} names what is evaluated on; "
               "heldout: 0 trains on them")  # fmt: skip


def without(parts: Split, barred: TextSet, source: Prompts) -> Split:
    """No row to train on whose prompt is among the barred texts."""
    apart = ~np.isin(prompt_keys(parts.train, source).hashes, barred.hashes)
    return replace(parts, train=RowView(parts.train, np.flatnonzero(apart)))


def num_distinct(data: Sequence[Sequence[Row]], source: Prompts) -> int:
    """Number of distinct prompts in several sequences of rows."""
    return len(np.unique(np.concatenate([prompt_keys(rows, source).hashes for rows in data])))


def barred_texts(parts: Split, source: Prompts) -> TextSet:
    """Prompts that are held out or validated on."""
    return TextSet(np.concatenate([prompt_keys(rows, source).hashes for rows in (parts.heldout, parts.validation)]))


def own_text(row: Row, source: Prompts) -> str:
    """What the row itself says in its prompt: what a template or a format gives to every row is no sign of a copy."""
    if source.template is None:
        return formats.own_text(prompt_text(row, source), source.format)
    return "\n".join(str(value) for column, value in row.items() if "{" + column + "}" in source.template)


def _decontaminated(parts: Split, source: Prompts, where: str, named: Sequence[Row]) -> Split:
    heldout = JoinedRows([parts.heldout, named])
    validation = _apart(parts.validation, heldout, source, f"{where}: dropped {{}} of {{}} validation rows")
    apart = JoinedRows([heldout, validation])
    train = _apart(parts.train, apart, source, f"{where}: dropped {{}} of {{}} training rows")
    return Split(train, parts.heldout, validation)


def _apart(rows: Sequence[Row], others: Sequence[Row], source: Prompts, line: str) -> Sequence[Row]:
    """The rows that share no run of words with the others; the line reports how many do."""
    words = source.decontaminate or 0
    shared = contaminated((own_text(r, source) for r in rows), (own_text(r, source) for r in others), words)
    if len(shared):
        notice(f"{line.format(len(shared), len(rows))} that share {words} words in a row with a held-out prompt")
    return RowView(rows, np.setdiff1d(np.arange(len(rows)), shared))


__all__ = ["LazyPrompts", "Row", "Split", "TaskCheck", "TextSet", "completion_value", "has_completion", "is_file_name",
           "load_rows", "longest", "named_heldout", "numbered_rows", "prompt_text", "searched", "split",
           "task_of"]  # fmt: skip
