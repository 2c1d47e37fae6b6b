"""One pool of scored samples: what any stage sampled and scored, any other may train on.

A row is a prompt, the sampled ids, their reward part by part, and their origin: stage, round, requested label.
FeedME, reward-model pairs, conditions and offline_q read the same rows: the `rollouts.jsonl` of a stage, a file of
the same shape, or a file (JSONL, JSON, Parquet) of human ratings, which is what FeedME learned from:
{"prompt": ..., "completion": ..., "rating": 7}.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import data_files, encoding, prompts
from pipeline.data.columns import DataRow
from pipeline.data.completion_text import completion_text
from pipeline.data.lazy_prompts import LazyPrompts
from pipeline.records import Prompt, Rollout, Scored, Status, as_json, from_json

SCORES = ("rating", "score", "reward")  # column names of the score in files of other tools


@dataclass(frozen=True, slots=True)
class Entry:
    """A scored sample and its origin. asked: the label it was sampled under; "" = none. rows: how many rows of the file
    it stands for, where several people rated one answer."""

    scored: Scored
    stage: str = ""
    round: int = 0
    asked: str = ""
    rows: int = 1


def as_row(entry: Entry) -> dict[str, Any]:
    return as_json(entry.scored, stage=entry.stage, round=entry.round, asked=entry.asked)


def read(path: Path, source: Prompts, tokenizer: Any, stop_token_ids: frozenset[int]) -> list[Entry]:
    """All rows of a file, ours or another tool's. Raises ConfigError naming the line and what it lacks.

    source, tokenizer, stop_token_ids: how a row without token ids is encoded, as demonstrations are.
    """
    if not path.is_file():
        raise ConfigError([f"{path}: no such file of scored samples; a stage leaves one as rollouts.jsonl"])
    out, foreign = [], []
    for number, row in _numbered(path):
        if "ids" in row and "prompt_ids" in row:
            out.append(_ours(row, path, number))
        else:
            foreign.append(_foreign(row, path, number, source, tokenizer, stop_token_ids))
    return out + averaged(foreign)


def _numbered(path: Path) -> Iterator[tuple[int, DataRow]]:
    """(line or row number, row that knows its file) of a JSONL, JSON or Parquet file."""
    if path.name.lower().endswith((".json", ".json.gz", ".parquet")):
        yield from enumerate((DataRow(row, f"row {n} of {path}") for n, row in
                              enumerate(data_files.read_rows(str(path), "train", None, "pool"), 1)), 1)  # fmt: skip
    else:
        yield from ((number, DataRow(row, f"row {number} of {path}")) for number, row in prompts.numbered_rows(path))


def _ours(row: Mapping[str, Any], path: Path, number: int) -> Entry:
    try:
        scored = from_json(row)
    except (KeyError, TypeError, AssertionError) as exc:
        raise ConfigError([f"{path}:{number}: not a scored rollout ({type(exc).__name__}: {exc})"]) from exc
    return Entry(scored, str(row.get("stage", "")), int(row.get("round", 0)), str(row.get("asked", "")))


def _foreign(
    row: Mapping[str, Any], path: Path, number: int, source: Prompts, tokenizer: Any, stop_token_ids: frozenset[int]
) -> Entry:
    column, value = _rating(row, path, number)
    ids = encoding.render_ids(row, source, tokenizer, number=number)
    completion = encoding.completion_ids(row, source, tokenizer, ids, stop_token_ids=stop_token_ids, number=number)
    task = row.get("task")
    prompt = Prompt(-1, prompts.prompt_text(row, source, number=number), tuple(ids),
                    task if isinstance(task, Mapping) else {}, row)  # fmt: skip
    text = completion_text(tokenizer, completion, ids)
    rollout = Rollout(prompt, 0, tuple(completion), (0.0,) * len(completion), text, finished=True)
    reward = math.nan if value is None else float(value)
    status: Status = "error" if value is None else "pass"  # a rating does not say whether the answer is right
    return Entry(Scored(rollout, reward, status, {column: value}), "file")


def _rating(row: Mapping[str, Any], path: Path, number: int) -> tuple[str, float | None]:
    """Name and value of the score's column; None where nobody rated the answer. Raises ConfigError."""
    column = next((name for name in SCORES if name in row), None)
    if column is None:
        accepted = f"{', '.join(SCORES[:-1])} or {SCORES[-1]}"
        raise ConfigError([f"{path}:{number}: no score; give a column {accepted}; have: {', '.join(sorted(row))}"])
    value = row[column]
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ConfigError([f"{path}:{number}: {column} must be a number or null, found {value!r}"])
    return column, value


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Rows of a file of scored samples, and how many of them have a score. columns: those that hold the scores."""

    rows: int
    scored: int
    columns: tuple[str, ...]


_counts: dict[tuple[str, int, str], RowCounts] = {}  # file, when it was changed, how it is read


def count_rows(path: Path, source: Prompts) -> RowCounts:
    """Check every row as `read` does, without a tokenizer. Raises ConfigError naming the first that cannot be read.

    A process reads a file once: `plan` needs the counts for its checks and for its figures.
    """
    key = (str(path), path.stat().st_mtime_ns, repr(source))
    if key not in _counts:
        _counts[key] = _count_rows(path, source)
    return _counts[key]


def _count_rows(path: Path, source: Prompts) -> RowCounts:
    rows, scored, columns = 0, 0, dict[str, None]()
    for number, row in _numbered(path):
        rows += 1
        if "ids" in row and "prompt_ids" in row:
            column, scorable = "reward", _ours(row, path, number).scored.scorable
        else:
            column, value = _rating(row, path, number)
            prompts.prompt_text(row, source, number=number)
            prompts.completion_value(row, source, number=number, where="prompts")
            scorable = value is not None and not math.isnan(value)
        columns[column] = None
        scored += scorable
    return RowCounts(rows, scored, tuple(columns))


def averaged(entries: Sequence[Entry]) -> list[Entry]:
    """One entry per (prompt, completion), with the mean of its ratings; unrated rows do not count."""
    found: dict[tuple[str, tuple[int, ...]], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.scored.rollout.prompt.text, entry.scored.rollout.ids), []).append(entry)
    out = []
    for same in found.values():
        rated = [e.scored.reward for e in same if e.scored.scorable]
        first = next((e for e in same if e.scored.scorable), same[0])
        mean = math.fsum(rated) / len(rated) if rated else math.nan
        scored = replace(first.scored, reward=mean, detail=f"{len(rated)} ratings")
        out.append(replace(first, scored=scored, rows=len(same)))
    return out


def placed(entries: Sequence[Entry], known: Sequence[Prompt], *, barred: Container[str]) -> list[Entry]:
    """The entries as prompts of this run, without those of barred (held-out) prompts.

    A prompt of the run is replaced by the run's own, with its task and ids; any other gets the next index, one per
    distinct text, so that files with other prompt indices still group by prompt.
    """
    find = known.find if isinstance(known, LazyPrompts) else {prompt.text: prompt for prompt in known}.get
    own: dict[str, Prompt] = {}
    out, beyond = [], len(known)
    for entry in entries:
        rollout = entry.scored.rollout
        text = rollout.prompt.text
        if text in barred:
            continue
        if text not in own:
            own[text] = find(text) or replace(rollout.prompt, index=beyond)
            beyond += own[text].index == beyond
        # a later row of an episode with tools has what was said until then as its prompt
        prompt = replace(own[text], ids=rollout.prompt.ids, row={}) if rollout.turn else own[text]
        out.append(replace(entry, scored=replace(entry.scored, rollout=replace(rollout, prompt=prompt))))
    return out


def usable(entries: Sequence[Entry]) -> list[Scored]:
    """Samples to train on: scorable, and ended by an end token."""
    return [e.scored for e in entries if e.scored.scorable and e.scored.rollout.finished]


def left_out(read: Sequence[Entry], placed: Sequence[Entry]) -> str:
    """One line that accounts for every row of the files; "" where each row is a sample of its own.

    read: all entries; placed: those of prompts that are not held out.
    """
    rated = [e for e in placed if e.scored.scorable]
    used = [e for e in rated if e.scored.rollout.finished]
    reasons = {
        "of held-out prompts": sum(e.rows for e in read) - sum(e.rows for e in placed),
        "without a rating or score": sum(e.rows for e in placed) - sum(e.rows for e in rated),
        "cut at the length limit": sum(e.rows for e in rated) - sum(e.rows for e in used),
        "merged with other ratings of the same answer": sum(e.rows for e in used) - len(used),
    }
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f"{len(used)} samples of {sum(e.rows for e in read)} rows; not counted: {counted}" if counted else ""
