"""Prompts of a condition-trained model: from our commands, and from plain transformers or vLLM by its chat template.

A trained model's directory holds `conditions.json` (the labels it knows) and a chat template that adds the label:
    tokenizer.apply_chat_template(messages, add_generation_prompt=True, ask="best")
or `chat_template_kwargs: {"ask": "best"}` sent to a vLLM server needs no line of our code. `ask` is `best`, a bin
of the first attribute as text ("4"), or a mapping as {"correct": 1, "length": 0}; without it there is no label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.credit.conditioning import Conditions
from pipeline.data.encoding import render_ids
from pipeline.records import Prompt

Ids = tuple[int, ...]
FILE = "conditions.json"
PLAIN = "{%- for turn in messages -%}{{ turn['content'] }}{%- endfor -%}"  # of a model trained on plain text
MARK = "{#- condition label -#}"


def save(conditions: Conditions, tokenizer: Any, directory: Path) -> None:
    """Write conditions.json and a chat template that adds the label into a model's directory."""
    (directory / FILE).write_text(json.dumps(conditions.as_json(), indent=1, sort_keys=True) + "\n")
    before = tokenizer.chat_template
    tokenizer.chat_template = labelled_template(before or plain_template(tokenizer), conditions)
    tokenizer.save_pretrained(directory)
    tokenizer.chat_template = before


def load(directory: str | Path) -> Conditions | None:
    """The conditions that the model in this directory was trained on; None where there are none."""
    path = Path(directory) / FILE
    return Conditions.from_json(json.loads(path.read_text())) if path.is_file() else None


def label_of(directory: str | Path, ask: str) -> tuple[str, list[str]]:
    """The label's text and warnings. Raises ConfigError where the model knows no labels or not this one."""
    conditions = load(directory)
    if conditions is None:
        if ask in ("", "none"):
            return "", []
        raise ConfigError(
            [f"{directory}: has no {FILE}: it was not trained on condition labels, so none can be requested"]
        )
    try:
        requested = conditions.parse(ask)
    except ValueError as exc:
        raise ConfigError([f"label: {exc}"]) from exc
    return conditions.text(requested), conditions.warnings(requested)


def plain_template(tokenizer: Any) -> str:
    opens = list(tokenizer("").input_ids)
    return ("{{- bos_token -}}" if opens and opens[0] == tokenizer.bos_token_id else "") + PLAIN


def labelled_template(template: str, conditions: Conditions) -> str:
    """The chat template, with the requested label in front of the first user turn."""
    table = {axis.name: {str(i): axis.text(i) for i in range(axis.count)} for axis in conditions.axes}
    choices = f"best, {', '.join(table[conditions.main.name])}, or a mapping of {', '.join(table)}"
    return (
        MARK
        + "{%- set labels = " + json.dumps(table) + " -%}"
        + "{%- set asked = namespace(label='', placed=false, turns=[]) -%}"
        + "{%- if ask is defined and ask is not none and ask != 'none' -%}"
        + "{%- set wanted = " + json.dumps(conditions.best) + " if ask == 'best' else ask if ask is mapping else "
        + "{" + json.dumps(conditions.main.name) + ": ask} -%}"
        + "{%- for name, parts in labels.items() -%}{%- if name in wanted -%}"
        + "{%- if wanted[name] | string not in parts -%}"
        + "{{- raise_exception('ask: ' ~ wanted[name] ~ ' cannot be asked; give " + choices + "') -}}"
        + "{%- endif -%}{%- set asked.label = asked.label ~ parts[wanted[name] | string] -%}"
        + "{%- endif -%}{%- endfor -%}{%- endif -%}"
        + "{%- for turn in messages -%}"
        + "{%- if turn['role'] == 'user' and not asked.placed -%}{%- set asked.placed = true -%}"
        + "{%- set asked.turns = asked.turns + [dict(turn, content=asked.label ~ turn['content'])] -%}"
        + "{%- else -%}{%- set asked.turns = asked.turns + [turn] -%}{%- endif -%}"
        + "{%- endfor -%}{%- set messages = asked.turns -%}"
        + template
    )  # fmt: skip


def relabel(prompt: Prompt, label: str, source: Prompts, tokenizer: Any) -> Prompt:
    """The same prompt with a label in front; index, text and task stay, so it is scored as before."""
    row = prompt.row or {source.prompt: prompt.text}
    return replace(prompt, ids=tuple(render_ids(row, source, tokenizer, label=label)), label=label)


def with_start(ids: Ids, old: Ids, new: Ids) -> Ids | None:
    """ids that begin as the prompt `old` does, with what differs between `old` and `new` replaced.

    old, new: one prompt with two labels. ids: `old`, or a longer rendering of its conversation, as a later row of an
    episode or an environment's own words make it. What follows the label stays token by token. None where ids do not
    begin as `old` does, up to the first token after the label.
    """
    if ids == old or old == new:
        return new if ids == old else ids
    shortest = min(len(old), len(new))
    start = next((n for n in range(shortest) if old[n] != new[n]), shortest)
    end = next((n for n in range(shortest - start) if old[-1 - n] != new[-1 - n]), shortest - start)
    at = len(old) - end  # where old goes on as new does
    if ids[: at + 1] != old[: at + 1]:
        return None
    return (*ids[:start], *new[start : len(new) - end], *ids[at:])


def moved(prompt: Prompt, old: Prompt, new: Prompt) -> Prompt | None:
    """The prompt of a row that was sampled from `old`, as if it had been sampled from `new`; None: see `with_start`."""
    if prompt.ids == old.ids:
        return new
    ids = with_start(prompt.ids, old.ids, new.ids)
    return None if ids is None else replace(prompt, ids=ids, label=new.label)


def check_written(labels: Sequence[str], tokenizer: Any, where: str) -> None:
    """Every label survives encoding and decoding. Raises ConfigError naming the label that does not."""
    for label in labels:
        back = written(label, tokenizer)
        if back != label:
            raise ConfigError([f"{where}: {label!r} cannot be written in this model's vocabulary (it comes back as "
                               f"{back!r}); choose other characters, or vocabulary: special"])  # fmt: skip


def written(label: str, tokenizer: Any) -> str:
    """The label, encoded and decoded."""
    return str(tokenizer.decode(tokenizer(label, add_special_tokens=False).input_ids))
