"""Dataset rows -> Prompts: one function reads every source, one renders, one splits.

The held-out split is a function of the prompt's text alone, so a prompt that is held out is held out of every stage
and every data set of a run: SFT rows, preference pairs and rollouts all pass `split`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import verifiers
from pipeline.config.load import ConfigError, nearest
from pipeline.config.schema import Prime, Prompts
from pipeline.data import columns, data_files, formats
from pipeline.data.columns import DataRow, Row
from pipeline.data.data_files import is_file_name, numbered_rows, searched
from pipeline.data.decontamination import contaminated
from pipeline.data.encoding import render_ids
from pipeline.data.prompt_columns import completion_value, has_completion, prompt_text, prompt_value, task_of
from pipeline.distributed.notices import notice
from pipeline.records import Prompt
from pipeline.seeds import derive
from rewards.source_parts import SOURCE
from verifiers.tools._prime import PrimeEnvironment


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on, rows for the reported figures, and rows by which a stage chooses the step that it saves."""

    train: list[Row]
    heldout: list[Row]
    validation: list[Row] = field(default_factory=list)


# --- reading --------------------------------------------------------------------------------------------------------


def load_rows(source: Prompts, *, seed: int, where: str = "prompts", dirs: Sequence[str] = ()) -> list[Row]:
    """All rows of a source, in order. Raises ConfigError naming the file, line or key.

    Of several sources, one after another, each row with the columns prompt, completion, task and source.
    """
    if source.sources:
        return [row for name in source.sources for row in _rows_of_source(source, name, seed, where, dirs)]
    if source.prime is not None:
        rows = _prime_tasks(source.prime, source.rows, where)
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


def _rows_of_source(source: Prompts, name: str, seed: int, where: str, dirs: Sequence[str]) -> list[Row]:
    """The rows of one of several sources, in the columns that all of them share."""
    own, where = source.of_source(name), f"{where}.sources.{name}"
    out = list[Row]()
    for number, row in enumerate(load_rows(own, seed=seed, where=where, dirs=dirs), 1):
        columns_of: dict[str, Any] = {"prompt": prompt_value(row, own, number, where), SOURCE: name}
        if has_completion(row, own):
            columns_of["completion"] = completion_value(row, own, number=number, where=where)
        columns_of["task"] = {**task_of(row, own, number=number), SOURCE: name}
        columns_of |= {"tools": row["tools"]} if "tools" in row else {}
        out.append(DataRow(columns_of, columns.origin(row, number, own.path or own.procedural)))
    return out


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


def _converted(rows: list[Row], name: str | None, source: Prompts, where: str) -> list[Row]:
    if name not in formats.FORMATS:
        raise ConfigError([f"{where}.format: no format {name!r}{nearest(str(name), formats.FORMATS)}"])
    out, left_out = list[Row](), Counter[str]()
    for number, row in enumerate(rows, 1):
        origin = columns.origin(row, number, source.label)
        try:
            out.append(DataRow(formats.convert(row, name, origin=origin, where=where), origin))
        except formats.UnsupportedRow as exc:
            left_out[str(exc)] += 1
        except ValueError as exc:
            raise ConfigError([str(exc)]) from exc
    if left_out:
        reasons = ", ".join(f"{what} ({count})" for what, count in left_out.most_common(8))
        line = f"{where}: left out {left_out.total()} of {len(rows)} rows, which no verifier can judge: {reasons}"
        if not out:
            raise ConfigError([line])
        notice(line)
    return out


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


def named_heldout(source: Prompts, *, seed: int, where: str = "prompts", dirs: Sequence[str] = ()) -> list[Row]:
    """Rows of the file or split that the block names to judge on; none where it names none."""
    if not source.heldout_path and not source.heldout_split:
        return []
    if not source.heldout_path and (source.procedural or source.prime or Path(source.path or "").is_file()):
        raise ConfigError([f"{where}.heldout_split: {source.label} has no splits; give the folder that holds them "
                           "as path, or name a file with heldout_path"])  # fmt: skip
    key = "heldout_path" if source.heldout_path else "heldout_split"
    return load_rows(named_source(source), seed=seed, where=f"{where}.{key}", dirs=dirs)


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
    point = zlib.crc32(text.encode("utf-8", "surrogatepass")) % 10_000
    if point < source.heldout * 10_000:
        return "heldout"
    return "validation" if point < (source.heldout + source.validation) * 10_000 else "train"


def split(rows: Iterable[Row], source: Prompts, *, where: str = "prompts", heldout: Sequence[Row] = ()) -> Split:
    """Rows to train on, to evaluate on and to validate on. The rows `heldout` are evaluated on instead of those that
    the hash holds out.

    Neither are trained on: a prompt that is held out once stays so, whichever block names other rows to evaluate on.
    """
    parts: dict[str, list[Row]] = {"train": [], "heldout": [], "validation": []}
    barred = {prompt_text(row, source) for row in heldout}
    for number, row in enumerate(rows, 1):
        text = prompt_text(row, source, number=number, where=where)
        parts["heldout" if text in barred else part_of(text, source)].append(row)
    out = Split(**parts)
    if source.decontaminate:
        out = _decontaminated(out, source, where, heldout)
    return replace(out, heldout=list(heldout) or out.heldout)


def without(parts: Split, barred: Collection[str], source: Prompts) -> Split:
    """No row to train on whose prompt is among the barred texts."""
    return replace(parts, train=[row for row in parts.train if prompt_text(row, source) not in barred])


def own_text(row: Row, source: Prompts) -> str:
    """What the row itself says in its prompt: what a template or a format gives to every row is no sign of a copy."""
    if source.template is None:
        return formats.own_text(prompt_text(row, source), source.format)
    return "\n".join(str(value) for column, value in row.items() if "{" + column + "}" in source.template)


def _decontaminated(parts: Split, source: Prompts, where: str, named: Sequence[Row]) -> Split:
    heldout = [*parts.heldout, *named]
    validation = _apart(parts.validation, heldout, source, f"{where}: dropped {{}} of {{}} validation rows")
    train = _apart(parts.train, [*heldout, *validation], source, f"{where}: dropped {{}} of {{}} training rows")
    return Split(train, parts.heldout, validation)


def _apart(rows: list[Row], others: Sequence[Row], source: Prompts, line: str) -> list[Row]:
    """The rows that share no run of words with the others; the line reports how many do."""
    words = source.decontaminate or 0
    shared = set(contaminated([own_text(r, source) for r in rows], [own_text(r, source) for r in others], words))
    if shared:
        notice(f"{line.format(len(shared), len(rows))} that share {words} words in a row with a held-out prompt")
    return [row for index, row in enumerate(rows) if index not in shared]


# --- prompts of a run -----------------------------------------------------------------------------------------------


def distinct_prompts(rows: Sequence[Row], source: Prompts, tokenizer: Any, *, label: str = "") -> list[Prompt]:
    """One Prompt per distinct text, in order of first appearance; too long ones left out where a limit is set."""
    seen: set[str] = set()
    out: list[Prompt] = []
    for number, row in enumerate(rows, 1):
        text = prompt_text(row, source, number=number)
        if text in seen:
            continue
        seen.add(text)
        ids = render_ids(row, source, tokenizer, label=label, number=number)
        if source.max_prompt_tokens is not None and len(ids) > source.max_prompt_tokens:
            continue
        out.append(Prompt(len(out), text, tuple(ids), task_of(row, source, number=number), row))
    return out


def check_tasks(prompts: Sequence[Prompt], required: Mapping[str, frozenset[str]]) -> None:
    """Every prompt has the fields every verifier needs. required: verifier name -> field names.

    Raises ConfigError naming the first row and field that is missing for each verifier.
    """
    mistakes = []
    for name, needed in required.items():
        for prompt in prompts:
            missing = sorted(needed - prompt.task.keys())
            if missing:
                row = f"row {prompt.index + 1} ({prompt.text[:40]!r})"
                have = nearest(missing[0], prompt.task)
                mistakes.append(
                    f"prompts: {row} has no field {missing[0]!r}, which verifier {name!r} needs{have}; "
                    "map it with prompts.task"
                )
                break
    if mistakes:
        raise ConfigError(mistakes)


__all__ = ["Row", "Split", "completion_value", "distinct_prompts", "has_completion", "is_file_name", "load_rows",
           "named_heldout", "numbered_rows", "prompt_text", "searched", "split", "task_of"]  # fmt: skip
