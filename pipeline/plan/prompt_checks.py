"""Checks that the run's model can read its prompts and answer them: a tiny model's characters, the context length.

Made before torch is imported: of a tiny model a prompt's tokens are known without its tokenizer. Of any other model the
context is checked again when a plan has tokenized the prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.config.load import Config
from pipeline.config.schema import Prompts, Tiny
from pipeline.data import columns, prompt_columns
from pipeline.data.columns import Row
from pipeline.data.prompt_keys import encoded
from pipeline.models import families
from pipeline.models.tiny_text import unknown_characters

LABEL_TOKENS = 16  # room for a condition label, as in `Context.context_tokens`
SHOWN = 20  # characters in a line


def tiny_of(cfg: Config) -> Tiny | None:
    """The tiny model that the stage `base` makes; None for a model that exists."""
    return cfg.model.tiny if cfg.model.path is None else None


def row_mistakes(
    cfg: Config, rows: Sequence[Row], source: Prompts, where: str, *, completions: bool = False,
    sides: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """What the model cannot read of these rows: of their prompts and, where they are trained on, their completions or
    the columns `sides` of pairs. Raises ConfigError for a row that cannot be read at all."""
    tiny = tiny_of(cfg)
    if tiny is None:
        return []
    first: dict[str, str] = {}  # unknown character -> the first row that has it
    for number, row in enumerate(rows, 1):
        prompt = texts_of(prompt_columns.prompt_value(row, source, number, where))
        answers = _answers(row, source, number, where, sides, completions=completions)
        for character in unknown_characters(prompt + "".join(answers), tiny.characters):
            first.setdefault(character, columns.origin(row, number, source.label))
    return [f"{_lacking(where, first)}; the first is in {next(iter(first.values()))}"] if first else []


def _answers(
    row: Row, source: Prompts, number: int, where: str, sides: Sequence[str], *, completions: bool
) -> Iterator[str]:
    for side in sides:
        yield texts_of(columns.text_or_messages(row[side], side))
    if completions and prompt_columns.has_completion(row, source):
        yield texts_of(prompt_columns.completion_value(row, source, number=number, where=where))


def texts_of(value: str | list[Any]) -> str:
    """A prompt or completion without what a chat template adds."""
    turns = [value] if isinstance(value, str) else [turn.get("content") for turn in value]
    return "".join(text for text in turns if isinstance(text, str))


def label_mistakes(cfg: Config) -> list[str]:
    """Condition labels that a tiny model cannot read."""
    tiny = tiny_of(cfg)
    if tiny is None:
        return []
    lines: list[str] = []
    for name in cfg.stages:
        block = cfg.blocks[name]
        if getattr(block, "vocabulary", "text") == "special":
            continue
        attributes = getattr(block, "attributes", None) or {}  # in place of `label`
        labels = {f"attributes.{key}.label": one.label.replace("{bin}", "".join(one.words) or "0")
                  for key, one in attributes.items()} or {
                      "label": getattr(block, "label", "").replace("{bin}", "0")}  # fmt: skip
        missing = {key: unknown_characters(label, tiny.characters) for key, label in labels.items()}
        lines += [_lacking(f"{name}.{key}", some) for key, some in missing.items() if some]
    return lines


def _lacking(where: str, characters: Iterable[str]) -> str:
    found = "".join(characters)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"model.tiny.characters: {where}: characters that are not listed: {found[:SHOWN]!r}{more}; add them"


def longest_prompt(cfg: Config, read: Iterable[tuple[Prompts, Sequence[Row]]]) -> int:
    """Tokens of the longest prompt of a tiny model, without what a chat template adds; 1 for any other model.

    read: the sources of prompts with their rows.
    """
    if tiny_of(cfg) is None:
        return 1
    limit = cfg.prompts.max_prompt_tokens
    lengths = [len(encoded(texts_of(prompt_columns.prompt_value(row, source, 0, "prompts"))))
               for source, rows in read for row in rows]  # fmt: skip
    return max((length for length in lengths if limit is None or length <= limit), default=1)


def context_mistakes(cfg: Config, longest: int) -> list[str]:
    """Whether the longest prompt and a completion fit into the model. longest: tokens, at least so many."""
    tiny, label = tiny_of(cfg), LABEL_TOKENS if cfg.tools is None else 0
    config = families.read_config(cfg.model.path) if cfg.model.path else None
    limit = tiny.max_position_embeddings if tiny else families.text_fields(config or {}).get("max_position_embeddings")
    needed = longest + cfg.sampling.max_tokens + label
    if cfg.program is not None or not isinstance(limit, int) or needed <= limit:
        return []
    room = limit - longest - label
    fixes = [f"set it to at most {room}"] if room > 0 else []
    fixes += [f"raise model.tiny.max_position_embeddings to {needed}"] if tiny else []
    fixes += [] if tiny or longest == 1 else ["drop long prompts by prompts.max_prompt_tokens"]
    reserved = f" and {label} for a label" if label else ""
    return [f"sampling.max_tokens: {cfg.sampling.max_tokens} tokens, {longest} of the longest prompt{reserved} "
            f"are {needed}; the model has {limit}; "
            f"{', or '.join(fixes) or 'take a model of a longer context'}"]  # fmt: skip
