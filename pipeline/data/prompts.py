"""Dataset rows -> Prompts: one function reads every source, one renders, one splits.

The held-out split is a function of the prompt's text alone, so a prompt that is held out is held out of every stage
and every data set of a run: SFT rows, preference pairs and rollouts all pass `split`.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import verifiers
from pipeline.config.load import ConfigError, nearest
from pipeline.config.schema import Prompts
from pipeline.data import formats
from pipeline.distributed import ranks
from pipeline.records import Prompt
from pipeline.seeds import derive

Row = dict[str, Any]
MARK = re.compile(r"\{([^{}]+)\}")  # of a column, in a template
TODAY = date(2024, 7, 26)  # to templates that tell the day (Llama 3.2): the day that theirs give where no clock is


@dataclass(frozen=True, slots=True)
class Split:
    train: list[Row]
    heldout: list[Row]


def load_rows(source: Prompts, *, seed: int, where: str = "prompts", dirs: Sequence[str] = ()) -> list[Row]:
    """All rows of a source, in order. Raises ConfigError naming the file, line or key."""
    if source.procedural:
        rows = _procedural(source, seed, where, dirs)
    elif source.path:
        rows = _read(source.path, source.split, source.name, where)
    else:
        raise ConfigError(
            [f"{where}: give path (JSONL, Parquet or Hub id) or procedural (a verifier that makes tasks)"]
        )
    rows = rows[: source.rows] if source.rows else rows
    if not rows:
        raise ConfigError([f"{where}: {source.path or source.procedural} has no rows"])
    return _converted(rows, source, where) if source.format else rows


def _converted(rows: list[Row], source: Prompts, where: str) -> list[Row]:
    name = source.format or ""
    if name not in formats.FORMATS:
        raise ConfigError([f"{where}.format: no format {name!r}{nearest(name, formats.FORMATS)}"])
    out, left_out = list[Row](), Counter[str]()
    for number, row in enumerate(rows, 1):
        try:
            out.append(formats.convert(row, name, number=number, where=where))
        except formats.Unsupported as exc:
            left_out[str(exc)] += 1
        except ValueError as exc:
            raise ConfigError([str(exc)]) from exc
    if left_out:
        asked = ", ".join(f"{what} ({count})" for what, count in left_out.most_common(8))
        told = f"{where}: left out {left_out.total()} of {len(rows)} rows, which no verifier can judge: {asked}"
        if not out:
            raise ConfigError([told])
        _tell(told)
    return out


def _tell(line: str) -> None:
    """Once, and not amid what a program may read from the output."""
    if ranks.is_main():
        print(line, file=sys.stderr, flush=True)


def _procedural(source: Prompts, seed: int, where: str, dirs: Sequence[str]) -> list[Row]:
    try:
        verifier = verifiers.load(source.procedural or "", dirs)
    except ValueError as exc:
        raise ConfigError([f"{where}.procedural: {exc}"]) from exc
    if verifier.generate is None:
        raise ConfigError([f"{where}.procedural: verifier {verifier.name!r} cannot make tasks; it has no generate()"])
    return list(verifier.generate(source.rows or 1000, derive(seed, "rows", verifier.name)))


def _read(path: str, split: str, name: str | None, where: str) -> list[Row]:
    place = Path(path)
    if place.suffix in (".jsonl", ".json", ".parquet") or place.exists():
        if not place.exists():
            raise ConfigError([f"{where}.path: {path} does not exist"])
        files = sorted(p for p in place.iterdir() if p.suffix in (".jsonl", ".parquet")) if place.is_dir() else [place]
        if not files:
            raise ConfigError([f"{where}.path: no .jsonl or .parquet file in {path}"])
        return [row for file in files for row in _read_file(file)]
    return _read_hub(path, split, name, where)


def _read_file(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return list(pyarrow.parquet.read_table(path).to_pylist())
        except Exception as exc:  # pyarrow's errors have no common parent
            raise ConfigError([f"{path}: not readable as Parquet: {' '.join(str(exc).split())}"]) from exc
    if path.suffix != ".json":
        return [row for _, row in numbered_rows(path)]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:  # of the JSON or of its encoding
        raise ConfigError([f"{path}: not JSON in UTF-8: {exc}"]) from exc
    if not isinstance(rows, list):
        raise ConfigError([f"{path}: expected a list of rows; one object a line is .jsonl"])
    return rows


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, object) of each line of a JSONL that is not empty. Raises ConfigError naming file and line."""
    with path.open("rb") as lines:  # in bytes, whose only line ends are the file's: text may hold U+2028 or U+0085
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as exc:
                raise ConfigError([f"{path}:{number}: not UTF-8: {exc.reason}"]) from exc
            except json.JSONDecodeError as exc:
                raise ConfigError([f"{path}:{number}: not JSON: {exc.msg}"]) from exc
            if not isinstance(row, dict):
                raise ConfigError([f"{path}:{number}: expected an object, found {type(row).__name__}"])
            yield number, row


def _read_hub(path: str, split: str, name: str | None, where: str) -> list[Row]:
    import datasets

    try:
        return list(datasets.load_dataset(path, name, split=split))
    except Exception as exc:  # the Hub, the network and data sets' own code fail in many ways
        reason = " ".join(str(exc).split())[:200]
        raise ConfigError(
            [f"{where}.path: {path!r} is no local file and could not be read from the Hub: {reason}"]
        ) from exc


def prompt_text(row: Mapping[str, Any], source: Prompts, *, number: int = 0, where: str = "prompts") -> str:
    """The row's prompt as people read it, and the key of the held-out split. Raises ConfigError naming the row."""
    value = _prompt_value(row, source, number, where)
    if isinstance(value, str):
        return value
    return "\n".join(f"{turn.get('role', '?')}: {turn.get('content', '')}" for turn in value)


def own_text(row: Row, source: Prompts) -> str:
    """What the row itself says in its prompt: what a template or a format gives to every row is no sign of a copy."""
    if source.template is None:
        return formats.own_text(prompt_text(row, source), source.format)
    return "\n".join(str(value) for column, value in row.items() if "{" + column + "}" in source.template)


def _prompt_value(row: Mapping[str, Any], source: Prompts, number: int, where: str) -> str | list[dict[str, str]]:
    if source.template is not None:  # only its own marks are filled: a value may hold {answer} as its words
        return MARK.sub(lambda mark: str(row[mark[1]]) if mark[1] in row else mark[0], source.template)
    if source.prompt in row:
        return row[source.prompt]
    if "messages" in row:  # TRL's conversational language-modelling format: the last turn is the completion
        return list(row["messages"][:-1])
    column = f"row {number} of {source.path or source.procedural or 'the data'} has no column {source.prompt!r}"
    raise ConfigError([f"{where}.prompt: {column}{nearest(source.prompt, row)}"])


def completion_value(row: Mapping[str, Any], source: Prompts, *, number: int, where: str) -> str | list[dict[str, str]]:
    """The row's completion, text or messages. Raises ConfigError naming the row."""
    if source.completion in row:
        return row[source.completion]
    if "messages" in row:
        return list(row["messages"][-1:])
    column = f"row {number} of {source.path or source.procedural or 'the data'} has no column {source.completion!r}"
    raise ConfigError([f"{where}.completion: {column}{nearest(source.completion, row)}"])


def named_heldout(source: Prompts, *, seed: int, where: str = "prompts", dirs: Sequence[str] = ()) -> list[Row]:
    """Rows of the file or split that the block names to judge on; none where it names none."""
    if not source.heldout_path and not source.heldout_split:
        return []
    return load_rows(named_source(source), seed=seed, where=f"{where}.heldout_path", dirs=dirs)


def named_source(source: Prompts) -> Prompts:
    """Where the rows to judge on come from: another file, or another split of the same data."""
    return replace(source, path=source.heldout_path or source.path, rows=None, split=source.heldout_split or
                   source.split, procedural=None if source.heldout_path else source.procedural)  # fmt: skip


def is_heldout(text: str, share: float) -> bool:
    """By a hash of the text: the same answer in every stage, run and process."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % 10_000 < share * 10_000


def split(rows: Iterable[Row], source: Prompts, *, where: str = "prompts", heldout: Sequence[Row] = ()) -> Split:
    """Rows to train on and rows to judge on. The rows `heldout` are judged on instead of those that the hash holds out.

    Neither are trained on: a prompt that is held out once stays so, whichever block names other rows to judge on.
    """
    out, barred = Split([], []), {prompt_text(row, source) for row in heldout}
    for number, row in enumerate(rows, 1):
        text = prompt_text(row, source, number=number, where=where)
        (out.heldout if text in barred or is_heldout(text, source.heldout) else out.train).append(row)
    if source.decontaminate and (out.heldout or barred):
        out = _decontaminated(out, source, where, heldout)
    return Split(out.train, list(heldout) or out.heldout)


def without(parts: Split, barred: Collection[str], source: Prompts) -> Split:
    """No row to train on whose prompt is among the barred texts."""
    return Split([row for row in parts.train if prompt_text(row, source) not in barred], parts.heldout)


def _decontaminated(parts: Split, source: Prompts, where: str, named: Sequence[Row]) -> Split:
    train, heldout = ([own_text(row, source) for row in side] for side in (parts.train, [*parts.heldout, *named]))
    words = source.decontaminate or 0
    shared = set(formats.contaminated(train, heldout, words))
    if shared:
        _tell(f"{where}: dropped {len(shared)} of {len(train)} training rows that share {words} words in a row with a "
              "held-out prompt")  # fmt: skip
    return Split([row for place, row in enumerate(parts.train) if place not in shared], parts.heldout)


def task_of(row: Mapping[str, Any], source: Prompts, *, number: int = 0) -> dict[str, Any]:
    """The verifier's fields. Raises ConfigError where a mapped column is missing."""
    if source.task is not None:
        for task_field, column in source.task.items():
            if column not in row:
                raise ConfigError(
                    [f"prompts.task.{task_field}: row {number} has no column {column!r}{nearest(column, row)}"]
                )
        return {task_field: row[column] for task_field, column in source.task.items()}
    if isinstance(row.get("task"), Mapping):
        return dict(row["task"])
    return {k: v for k, v in row.items() if k not in ("messages", source.completion)}


def render_ids(
    row: Mapping[str, Any], source: Prompts, tokenizer: Any, *, label: str = "", number: int = 0
) -> list[int]:
    """Prompt token ids: plain text as it is, messages through the chat template. One BOS, no EOS.

    label: plain text put in front of what the user says (condition tokens).
    """
    if not in_chat(row, source, number):
        ids = list(tokenizer(label + str(_prompt_value(row, source, number, "prompts"))).input_ids)
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    messages = _messages(row, source, number)
    for turn in messages:
        if label and turn["role"] == "user":
            turn["content"] = label + turn["content"]
            break
    return _chat_ids(tokenizer, messages, source, number, add_generation_prompt=True)


def in_chat(row: Mapping[str, Any], source: Prompts, number: int = 0) -> bool:
    """Does this row go through the chat template: it holds messages, or the config puts its text into a turn."""
    return (
        source.chat or source.system is not None or not isinstance(_prompt_value(row, source, number, "prompts"), str)
    )


def _messages(row: Mapping[str, Any], source: Prompts, number: int) -> list[dict[str, str]]:
    value = _prompt_value(row, source, number, "prompts")
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else [dict(turn) for turn in value]
    if source.system is not None and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": source.system})
    return messages


def _chat_ids(tokenizer: Any, messages: list[dict[str, str]], source: Prompts, number: int, **how: Any) -> list[int]:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        mend = "set model.chat_template, or give prompts as text"
        raise ConfigError([f"prompts: the rows are messages and the tokenizer has no chat template; {mend}"])
    how = {**source.chat_kwargs, **how, "tokenize": True, "return_dict": False}
    if "strftime_now" in str(tokenizer.chat_template):  # a run that goes on another day has the same prompts
        how.setdefault("strftime_now", TODAY.strftime)
    try:
        return list(tokenizer.apply_chat_template(messages, **how))
    except TemplateError as exc:
        row = f"row {number}: " if number else ""
        raise ConfigError([f"prompts: {row}the chat template refuses it: {' '.join(str(exc).split())[:200]}"]) from exc


def completion_ids(
    row: Mapping[str, Any],
    source: Prompts,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    *,
    ends: frozenset[int],
    number: int = 0,
) -> list[int]:
    """Completion token ids with exactly one end token, at the end: what the template ends a turn with, else EOS.

    Raises ConfigError naming the row.
    """
    value = completion_value(row, source, number=number, where="prompts")
    if not in_chat(row, source, number):
        text = value if isinstance(value, str) else "".join(turn["content"] for turn in value)
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        return ids if ids and ids[-1] in ends else [*ids, tokenizer.eos_token_id]
    answer = [{"role": "assistant", "content": value}] if isinstance(value, str) else list(value)
    whole = _chat_ids(tokenizer, [*_messages(row, source, number), *answer], source, number)
    if whole[: len(prompt_ids)] != list(prompt_ids):
        mend = "give prompt and completion as text, or a template that only appends"
        raise ConfigError([f"prompts: row {number}: the chat template changes the prompt once it is answered; {mend}"])
    ids = whole[len(prompt_ids) :]
    last = max((i for i, token in enumerate(ids) if token in ends), default=None)
    ids = ids if last is None else ids[: last + 1]  # a template's newline after the end is never sampled
    return ids if ids and ids[-1] in ends else [*ids, tokenizer.eos_token_id]


def distinct_prompts(rows: Sequence[Row], source: Prompts, tokenizer: Any, *, label: str = "") -> list[Prompt]:
    """One Prompt a distinct text, in order of first appearance; too long ones left out where a limit is set."""
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
