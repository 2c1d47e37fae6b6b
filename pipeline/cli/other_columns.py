"""Columns of `whetstone new` for rows in which the usual look finds nothing to learn from.

Tried only then: golds inside a struct or under a name in another case, and demonstrations that are not called
`completion`. What is still missing is said in one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cli.pick_verifier import GOLDS, Choice, golds_in
from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import columns

COMPLETIONS = ("completion", "response", "output")
SOLUTIONS = ("answer", "solution", "target")  # imitated where they are too long to compare an answer with
CONTEXTS = ("context", "input")
CHOICES = ("choices", "options", "endings")
BY_HAND = "write the YAML by hand: docs/tasks.md has one for each kind of data"

Rows = Sequence[Mapping[str, Any]]


def column_like(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The row's column with one of these names, in any case; the first name that it has counts."""
    lower: dict[str, str] = {}
    for column in row:
        lower.setdefault(column.lower(), column)
    return next((lower[name] for name in names if name in lower), None)


def check_prompts(rows: Rows, source: Prompts, questions: Sequence[str]) -> None:
    """Raise ConfigError where no row has the prompt's column, or a row lacks what most have."""
    held = [any(name in row for name in (source.prompt, "messages", "segments")) for row in rows]
    if not any(held):
        raise ConfigError([
            f"new: {source.path} has no column 'prompt' and none of {', '.join(('messages', *questions))}; have: "
            f"{', '.join(rows[0])}; {BY_HAND}, and prompts: {{prompt: COLUMN}} names the column"])  # fmt: skip
    if not all(held):
        _refuse_row(rows, source, source.prompt, held)


def learn_from(rows: Rows, tasks: Rows, source: Prompts) -> Choice:
    """The verifier of golds with less usual names; sets source.completion, and a template where a context belongs to
    the prompt. Raises ConfigError where there is neither a gold nor a demonstration."""
    choice = _other_gold(tasks)
    completion = _demonstrations(rows, source, COMPLETIONS if choice else (*COMPLETIONS, *SOLUTIONS))
    if completion is not None:
        source.completion = completion
        context = column_like(rows[0], CONTEXTS)
        if context not in (None, source.prompt) and all(isinstance(row.get(context or ""), str) for row in rows):
            source.template = f"{{{source.prompt}}}\n\n{{{context}}}"
    if choice is None and completion is None:
        _refuse(rows, source)
    return choice or Choice("", "no row has a field that an answer could be compared with")


def _other_gold(tasks: Rows) -> Choice | None:
    """By the only column that may hold a gold. Raises ConfigError where there are several."""
    found: list[str] = []
    for column, value in tasks[0].items():
        named = column.lower() in GOLDS
        inside = value if isinstance(value, Mapping) else {}
        found += [f"{column}.{key}" for key in inside if key.lower() in GOLDS or (named and key.lower() == "value")]
        found += [column] if named else []
    fitting = {column: choice for column in found if (choice := golds_in(tasks, column)) is not None}
    if len(fitting) > 1:
        raise ConfigError([f"new: each of the columns {', '.join(fitting)} may hold the answer; {BY_HAND}, and "
                           "prompts: {task: {gold: COLUMN}} names the column"])  # fmt: skip
    return next(iter(fitting.values()), None)


def _demonstrations(rows: Rows, source: Prompts, names: Sequence[str]) -> str | None:
    """The column with an answer to imitate in every row."""
    for name in names:
        column = column_like(rows[0], (name,))
        if column not in (None, source.prompt) and all(_is_answer(row.get(column or "")) for row in rows):
            return column
    return None


def _is_answer(value: Any) -> bool:
    try:
        return isinstance(value, str | list) and bool(columns.text_or_messages(value, ""))
    except ValueError:
        return False


def _refuse(rows: Rows, source: Prompts) -> None:
    """Raise ConfigError: a row that lacks what the others have, answers of the wrong kind, or no answer at all."""
    golds = [name for name in GOLDS if "." not in name]
    for name in (*golds, *COMPLETIONS):
        held = [row.get(name) is not None for row in rows]
        if sum(held) > len(rows) / 2 and not all(held):
            _refuse_row(rows, source, name, held)
        if all(isinstance(row.get(name), bool) for row in rows):
            raise ConfigError([
                f"new: {source.path}: column {name!r} holds true and false, which no verifier compares with an answer; "
                'write what the model should answer as text, such as "yes" or "no"'])  # fmt: skip
    raise ConfigError([
        f"new: {source.path}: no column has an answer to check ({', '.join(golds)}, also inside a struct), an answer "
        f"to imitate ({', '.join(COMPLETIONS)}) or a pair (chosen, rejected); have: {', '.join(rows[0])}; {BY_HAND}"
    ])  # fmt: skip


def _refuse_row(rows: Rows, source: Prompts, name: str, held: Sequence[bool]) -> None:
    number = held.index(False)
    lacks = f"has null in column {name!r}" if name in rows[number] else f"has no column {name!r}"
    raise ConfigError([f"new: {columns.origin(rows[number], number + 1, source.path)} {lacks}, which {sum(held)} of "
                       f"{len(rows)} rows have; fill it in, or remove the row"])  # fmt: skip


# --- multiple choice --------------------------------------------------------------------------------------------------


def check_choices(tasks: Rows, choice: Choice, path: str | None) -> None:
    """Raise ConfigError where the gold is the number of a choice: no verifier reads it, and as a number it would reward
    an answer that nobody asked for."""
    gold, listed = (choice.task or {}).get("gold", "gold"), _choices_column(tasks)
    if listed is None or choice.verifier not in ("math_answer", "exact", "numeric"):
        return
    golds = [(str(columns.column(task, gold)).strip(), task[listed]) for task in tasks]
    if not all(text.isdecimal() and int(text) <= len(texts) for text, texts in golds):
        return
    if all(text in map(str, texts) for text, texts in golds):
        return  # the answer is the text of a choice, which is a number
    raise ConfigError([
        f"new: {path}: column {gold!r} is the number of a choice in {listed!r}, and multiple_choice reads a letter; "
        'write rows such as {"prompt": "Which one?\\nA. this\\nB. that", "gold": "B"}'])  # fmt: skip


def choices_missing(tasks: Rows, choice: Choice, texts: Sequence[str], prompt: str) -> str | None:
    """A line that says how to put the choices into the prompt, where it does not list them; None otherwise."""
    listed = _choices_column(tasks)
    if choice.verifier != "multiple_choice" or listed is None:
        return None
    if any(str(each) in text for task, text in zip(tasks, texts, strict=True) for each in task[listed]):
        return None
    lines = "".join(f"\\n{chr(65 + n)}. {{{listed}.{n}}}" for n in range(min(len(task[listed]) for task in tasks)))
    return f'the prompt does not list the choices; add to prompts: template: "{{{prompt}}}{lines}"'


def _choices_column(tasks: Rows) -> str | None:
    return next((n for n in CHOICES if all(isinstance(t.get(n), Sequence) and not isinstance(t[n], str)
                                           for t in tasks)), None)  # fmt: skip


__all__ = ["check_choices", "check_prompts", "choices_missing", "column_like", "learn_from"]
