"""Dataset rows -> Prompts: one function reads every source, one renders, one splits.

The held-out split is a function of the prompt's text alone, so a prompt that is held out is held out of every stage
and every data set of a run: SFT rows, preference pairs and rollouts all pass `split`.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import verifiers
from pipeline.config.load import ConfigError, nearest
from pipeline.config.schema import Prompts
from pipeline.data import chat_template, columns, conversations, data_files, formats
from pipeline.data.columns import MISSING, DataRow, Message, Row
from pipeline.data.conversations import IMITATE, Conversation, Demonstration, Renderer
from pipeline.data.data_files import is_file_name, numbered_rows
from pipeline.data.decontamination import contaminated
from pipeline.data.notices import notice
from pipeline.records import Prompt
from pipeline.seeds import derive

MARK = re.compile(r"\{([^{}]+)\}")  # of a column, in a template


@dataclass(frozen=True, slots=True)
class Split:
    train: list[Row]
    heldout: list[Row]


# --- reading --------------------------------------------------------------------------------------------------------


def load_rows(source: Prompts, *, seed: int, where: str = "prompts", dirs: Sequence[str] = ()) -> list[Row]:
    """All rows of a source, in order. Raises ConfigError naming the file, line or key."""
    if source.procedural:
        rows = _procedural(source, seed, where, dirs)
    elif source.path:
        rows = data_files.read_rows(source.path, source.split, source.name, where)
    else:
        raise ConfigError(
            [f"{where}: give path (JSONL, Parquet or Hub id) or procedural (a verifier that makes tasks)"]
        )
    rows = rows[: source.rows] if source.rows else rows
    if not rows:
        raise ConfigError([f"{where}: {source.path or source.procedural} has no rows"])
    name = source.format or _recognised(rows, source, where)
    return _converted(rows, name, source, where) if name not in (None, formats.PLAIN) else rows


def _recognised(rows: Sequence[Row], source: Prompts, where: str) -> str | None:
    """The format that the rows' columns are of, where the YAML names neither a format nor columns of its own."""
    own = source.template is not None or source.prompt != "prompt" or source.completion != "completion"
    name = None if own or source.procedural else formats.recognised(rows)
    if name:
        key = f"{where.rpartition(': ')[2]}.format"
        notice(f"{source.path}: read as format {name!r}, by its columns; {key}: {name} fixes the choice, "
               f"{key}: {formats.PLAIN} reads the columns as they are")  # fmt: skip
    return name


def _converted(rows: list[Row], name: str | None, source: Prompts, where: str) -> list[Row]:
    if name not in formats.FORMATS:
        raise ConfigError([f"{where}.format: no format {name!r}{nearest(str(name), formats.FORMATS)}"])
    out, left_out = list[Row](), Counter[str]()
    for number, row in enumerate(rows, 1):
        origin = columns.origin(row, number, source.path or source.procedural)
        try:
            out.append(DataRow(formats.convert(row, name, origin=origin, where=where), origin))
        except formats.Unsupported as exc:
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
    if not source.heldout_path and (source.procedural or Path(source.path or "").is_file()):
        what = source.procedural or source.path
        raise ConfigError([f"{where}.heldout_split: {what} has no splits; give the folder that holds them as path, or "
                           "name a file with heldout_path"])  # fmt: skip
    key = "heldout_path" if source.heldout_path else "heldout_split"
    return load_rows(named_source(source), seed=seed, where=f"{where}.{key}", dirs=dirs)


def named_source(source: Prompts) -> Prompts:
    """Where the rows to judge on come from: another file, or another split of the same data."""
    split = source.heldout_split or source.split
    if source.heldout_path and not source.heldout_split and Path(source.heldout_path).is_file():
        split = "train"  # of a file: all of it
    return replace(source, path=source.heldout_path or source.path, rows=None, split=split, heldout_path=None,
                   heldout_split=None, procedural=None if source.heldout_path else source.procedural)  # fmt: skip


# --- columns --------------------------------------------------------------------------------------------------------


def prompt_text(row: Mapping[str, Any], source: Prompts, *, number: int = 0, where: str = "prompts") -> str:
    """The row's prompt as people read it, and the key of the held-out split. Raises ConfigError naming the row."""
    value = prompt_value(row, source, number, where)
    if isinstance(value, str):
        return value
    try:
        return chat_template.text_of(value)
    except ValueError as exc:
        raise _refused(f"{where}.prompt", row, number, source, exc) from exc


def own_text(row: Row, source: Prompts) -> str:
    """What the row itself says in its prompt: what a template or a format gives to every row is no sign of a copy."""
    if source.template is None:
        return formats.own_text(prompt_text(row, source), source.format)
    return "\n".join(str(value) for column, value in row.items() if "{" + column + "}" in source.template)


def prompt_value(row: Mapping[str, Any], source: Prompts, number: int, where: str) -> str | list[Message]:
    """The prompt as text, or as messages. Raises ConfigError naming file, row, column and fix."""
    if source.template is not None:  # only its own marks are filled: a value may hold {answer} as its words

        def filled(mark: re.Match[str]) -> str:
            value = columns.column(row, mark[1])
            return mark[0] if value is MISSING else str(value)

        return MARK.sub(filled, source.template)
    value = columns.column(row, source.prompt)
    try:
        if value is not MISSING:
            return columns.text_or_messages(value, source.prompt)
        if "segments" in row:
            return segments_prompt(row["segments"])
        if "messages" in row:  # TRL's conversational language-modelling format: the last turn is the completion
            turns = columns.text_or_messages(row["messages"], "messages", text=False)
            assert not isinstance(turns, str)
            if turns[-1]["role"] != "assistant":
                return turns
            if len(turns) == 1:
                raise ValueError("column 'messages' holds one assistant turn and no prompt before it")
            return turns[:-1]
    except ValueError as exc:
        raise _refused(f"{where}.prompt", row, number, source, exc) from exc
    raise ConfigError([f"{where}.prompt: {_origin(row, number, source)} has no column {source.prompt!r}"
                       f"{columns.nearest_column(source.prompt, row)}"])  # fmt: skip


def segments_prompt(segments: Sequence[Mapping[str, Any]]) -> str:
    """The text before the first segment that is learned from; all of it where that is the first."""
    texts = []
    for segment in segments:
        if segment["label"]:
            break
        texts.append(segment["text"])
    return "".join(texts) or "".join(segment["text"] for segment in segments)


def completion_value(row: Mapping[str, Any], source: Prompts, *, number: int, where: str) -> str | list[Message]:
    """The row's completion, text or messages. Raises ConfigError naming the row."""
    value = columns.column(row, source.completion)
    try:
        if value is not MISSING:
            return columns.text_or_messages(value, source.completion)
        if "segments" in row and any(segment["label"] for segment in row["segments"]):
            return "".join(segment["text"] for segment in row["segments"] if segment["label"])
        if "messages" in row:
            turns = columns.text_or_messages(row["messages"], "messages", text=False)
            assert not isinstance(turns, str)
            if turns[-1]["role"] == "assistant":
                return turns[-1:]
            raise ValueError(f"its messages end with the {turns[-1]['role']}'s turn, so there is no answer to imitate")
    except ValueError as exc:
        raise _refused(f"{where}.completion", row, number, source, exc) from exc
    raise ConfigError([f"{where}.completion: {_origin(row, number, source)} has no column {source.completion!r}"
                       f"{columns.nearest_column(source.completion, row)}"])  # fmt: skip


def has_completion(row: Mapping[str, Any], source: Prompts) -> bool:
    """Whether the row holds an answer to imitate: rows of verifiable tasks often hold none."""
    if row.get(IMITATE) is False:
        return False
    if columns.column(row, source.completion) is not MISSING:
        return True
    messages = columns.parsed_messages(m) if isinstance(m := row.get("messages"), str) else m
    if isinstance(messages, Sequence) and messages:
        return any(isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in messages)
    return any(segment["label"] for segment in row.get("segments") or ())


def task_of(row: Mapping[str, Any], source: Prompts, *, number: int = 0) -> dict[str, Any]:
    """The verifier's fields. Raises ConfigError where a mapped column is missing."""
    if source.task is not None:
        task = {}
        for task_field, name in source.task.items():
            task[task_field] = columns.column(row, name)
            if task[task_field] is MISSING:
                raise ConfigError([f"prompts.task.{task_field}: {_origin(row, number, source)} has no column {name!r}"
                                   f"{columns.nearest_column(name, row)}"])  # fmt: skip
        return task
    if isinstance(row.get("task"), Mapping):
        return dict(row["task"])
    return {k: v for k, v in row.items() if k not in ("messages", "segments", source.completion)}


def _origin(row: Mapping[str, Any], number: int, source: Prompts) -> str:
    return columns.origin(row, number, source.path or source.procedural)


def _refused(where: str, row: Mapping[str, Any], number: int, source: Prompts, reason: Exception) -> ConfigError:
    return ConfigError([f"{where}: {_origin(row, number, source)}: {reason}"])


# --- splitting ------------------------------------------------------------------------------------------------------


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
    shared = set(contaminated(train, heldout, words))
    if shared:
        notice(f"{where}: dropped {len(shared)} of {len(train)} training rows that share {words} words in a row with "
               "a held-out prompt")  # fmt: skip
    return Split([row for index, row in enumerate(parts.train) if index not in shared], parts.heldout)


# --- token ids ------------------------------------------------------------------------------------------------------


def in_chat(row: Mapping[str, Any], source: Prompts, number: int = 0) -> bool:
    """Does this row go through the chat template: it holds messages, or the config puts its text into a turn."""
    return source.chat or source.system is not None or not isinstance(prompt_value(row, source, number, "prompts"), str)


def render_ids(
    row: Mapping[str, Any], source: Prompts, tokenizer: Any, *, label: str = "", number: int = 0
) -> list[int]:
    """Prompt token ids: plain text as it is, messages through the chat template. One BOS, no EOS.

    label: plain text put in front of what the user says (condition tokens).
    """
    value = prompt_value(row, source, number, "prompts")
    if not in_chat(row, source, number):
        if "segments" in row and not label and has_completion(row, source):
            return list(conversations.segment_row(row["segments"], tokenizer).prompt_ids)
        ids = list(tokenizer(label + str(value)).input_ids)
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    try:
        chat = conversations.conversation(row, source, value, None)
        for turn in chat.messages:
            if label and turn["role"] == "user":
                turn["content"] = label + turn["content"]
                break
        return Renderer(tokenizer, source).prompt(chat.messages, chat.tools)
    except ValueError as exc:
        raise _refused("prompts", row, number, source, exc) from exc


def completion_ids(
    row: Mapping[str, Any],
    source: Prompts,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    *,
    ends: frozenset[int],
    number: int = 0,
) -> list[int]:
    """Completion token ids after the prompt's, which end with an end token: the template's of a turn, else EOS.

    A completion of several messages holds all of them, tool results too; to imitate one, see `demonstrations_of`.
    Raises ConfigError naming the row.
    """
    value = completion_value(row, source, number=number, where="prompts")
    if not in_chat(row, source, number):
        text = value if isinstance(value, str) else "".join(turn["content"] for turn in value)
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        return ids if ids and ids[-1] in ends else [*ids, tokenizer.eos_token_id]
    try:
        chat = conversations.conversation(row, source, prompt_value(row, source, number, "prompts"), value)
        renderer = Renderer(tokenizer, source, ends)
        if isinstance(value, str) or len(value) == 1:
            return renderer.answer(chat.messages, chat.tools, prompt_ids)
        full = chat_template.render(tokenizer, chat.messages, kwargs=source.chat_kwargs, tools=chat.tools)
        if full[: len(prompt_ids)] != list(prompt_ids):
            raise ValueError("the chat template changes the prompt once it is answered; give prompt and completion "
                             "as text, or a template that only appends")  # fmt: skip
        return renderer.ended(full[len(prompt_ids) :])
    except ValueError as exc:
        raise _refused("prompts", row, number, source, exc) from exc


def demonstrations_of(
    rows: Sequence[Mapping[str, Any]], source: Prompts, tokenizer: Any, *, ends: frozenset[int], where: str = "prompts",
    barred: Collection[str] = (),
) -> tuple[list[Demonstration], str | None]:  # fmt: skip
    """Rows -> what is imitated of them, and a line that counts what is not; None where everything is.

    barred: texts of held-out prompts, which no earlier turn of a conversation may answer either.
    Raises ConfigError naming the row that has no completion, or that the chat template refuses.
    """
    left_out, out = Counter[str](), list[Demonstration]()
    renderer = Renderer(tokenizer, source, ends)
    for number, row in enumerate(rows, 1):
        if row.get(IMITATE) is False:
            left_out["rows labelled as bad"] += 1
            continue
        before = len(out)
        out += _of_row(row, number, source, renderer, barred, left_out, where)
        left_out["rows without an assistant turn to imitate"] += len(out) == before
    line = conversations.summary(where, len(rows), len(out), +left_out)
    if rows and not out:
        raise ConfigError([line or f"{where}: no row to imitate"])
    return out, line


def _of_row(
    row: Mapping[str, Any], number: int, source: Prompts, renderer: Renderer, barred: Collection[str],
    left_out: Counter[str], where: str,
) -> list[Demonstration]:  # fmt: skip
    if "segments" in row:
        return [conversations.segment_row(row["segments"], renderer.tokenizer)]
    if not in_chat(row, source, number):
        prompt = render_ids(row, source, renderer.tokenizer, number=number)
        ids = completion_ids(row, source, renderer.tokenizer, prompt, ends=renderer.ends, number=number)
        if row.get("tools"):
            left_out["tools of prompts that are plain text (prompts.chat: true renders them)"] += 1
        return [Demonstration(tuple(prompt), tuple(ids), (True,) * len(ids), "text")]
    value = prompt_value(row, source, number, where)
    unanswered = source.completion not in row and "messages" in row and not _answered(row)
    after = None if unanswered else completion_value(row, source, number=number, where=where)
    left_out["last questions without an answer"] += unanswered
    try:
        chat = conversations.conversation(row, source, value, after)
        left_out["assistant turns flagged not to train"] += _flagged(chat, row, source)
        return conversations.imitated_rows(chat, renderer, train_on=source.train_on, barred=barred, left_out=left_out)
    except ValueError as exc:
        raise _refused(where, row, number, source, exc) from exc


def _answered(row: Mapping[str, Any]) -> bool:
    turns = columns.text_or_messages(row["messages"], "messages", text=False)
    return isinstance(turns[-1], Mapping) and turns[-1]["role"] == "assistant"


def _flagged(chat: Conversation, row: Mapping[str, Any], source: Prompts) -> int:
    if "messages" not in row or source.prompt in row:
        return 0
    return sum(turn["role"] == "assistant" for turn in chat.messages) - len(chat.turns)


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


__all__ = ["Split", "completion_ids", "demonstrations_of", "distinct_prompts", "has_completion", "is_file_name",
           "load_rows", "named_heldout", "numbered_rows", "prompt_text", "render_ids", "split", "task_of"]  # fmt: skip
