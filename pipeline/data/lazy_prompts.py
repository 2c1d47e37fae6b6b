"""The prompts of a run: of all of them the lengths are in memory, and the prompts themselves as far as they fit."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config.load import ConfigError, nearest
from pipeline.config.schema import Prompts
from pipeline.data.columns import Row
from pipeline.data.encoding import render_ids
from pipeline.data.lazy_rows import Rebuilt, RowView
from pipeline.data.prompt_columns import prompt_text, task_of
from pipeline.data.prompt_keys import encoded, hash_of, prompt_keys
from pipeline.records import Prompt
from rewards.source_parts import SOURCE


class LazyPrompts(Rebuilt[Prompt]):
    """One Prompt per distinct text, in order of first appearance, without those longer than `max_prompt_tokens`.

    lengths: (N,) numbers of tokens; rows: the N rows. check: called with every prompt.
    """

    def __init__(
        self, rows: Sequence[Row], source: Prompts, tokenizer: Any, *,
        check: Callable[[Prompt], None] | None = None,
    ) -> None:  # fmt: skip
        self.source, self.tokenizer = source, tokenizer
        super().__init__()
        fitting, lengths = array("q"), array("i")
        for number in map(int, prompt_keys(rows, source).first_rows()):
            row = rows[number]
            ids = self._ids(row, number + 1)
            if source.max_prompt_tokens is not None and len(ids) > source.max_prompt_tokens:
                continue
            prompt = self._prompt(len(fitting), row, number + 1, ids)
            if check is not None:
                check(prompt)
            if self.room > 0:
                self.keep(prompt, 40 * len(ids) + 3 * len(str(row)))
            fitting.append(number)
            lengths.append(len(ids))
        self._numbers, self.lengths = np.array(fitting, np.int64), np.array(lengths, np.int32)
        self.rows = RowView(rows, self._numbers)
        self._hashes = prompt_keys(rows, source).hashes[self._numbers]
        self._order = np.argsort(self._hashes)

    def __len__(self) -> int:
        return len(self._numbers)

    def build(self, index: int) -> Prompt:
        row, number = self.rows[index], int(self._numbers[index]) + 1
        return self._prompt(index, row, number, self._ids(row, number))

    def find(self, text: str) -> Prompt | None:
        """The prompt of this text."""
        index = np.searchsorted(self._hashes, wanted := np.uint64(hash_of(encoded(text))), sorter=self._order)
        found = index < len(self) and self._hashes[self._order[index]] == wanted
        return self[int(self._order[index])] if found else None

    def _ids(self, row: Row, number: int) -> list[int]:
        return render_ids(row, self.source, self.tokenizer, number=number)

    def _prompt(self, index: int, row: Row, number: int, ids: list[int]) -> Prompt:
        text, task = prompt_text(row, self.source, number=number), task_of(row, self.source, number=number)
        return Prompt(index, text, tuple(ids), task, row)


def longest(*prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest of all prompts."""
    return max(int(some.lengths.max()) if isinstance(some, LazyPrompts) else max(len(p.ids) for p in some)
               for some in prompts if some)  # fmt: skip


class TaskCheck:
    """Checks, prompt by prompt, that tasks have the fields every verifier needs.

    required: source (None where there is only one) -> verifier -> field names.
    """

    def __init__(self, required: Mapping[str | None, Mapping[str, frozenset[str]]]) -> None:
        self.required = required
        self.mistakes: dict[tuple[str | None, str], str] = {}

    def __call__(self, prompt: Prompt) -> None:
        source = None if None in self.required else prompt.task.get(SOURCE)
        for name, needed in self.required.get(source, {}).items():
            missing = sorted(needed - prompt.task.keys())
            if missing and (source, name) not in self.mistakes:
                row = f"row {prompt.index + 1} ({prompt.text[:40]!r})"
                self.mistakes[source, name] = (
                    f"prompts: {row} has no field {missing[0]!r}, which verifier {name!r} needs"
                    f"{nearest(missing[0], prompt.task)}; map it with prompts.task"
                )

    def finish(self) -> None:
        """Raises ConfigError naming the first row and field that is missing, for each verifier of a source."""
        for source, verifiers in self.required.items():
            if lines := [self.mistakes[source, name] for name in verifiers if (source, name) in self.mistakes]:
                raise ConfigError(lines)
