"""TRL's data set types beside those that we read as they are (messages, prompt and completion, explicit preference).

Source: TRL's documentation, "Dataset formats and types".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.conversations import IMITATE
from pipeline.data.formats.spec import Format, Row, ends_with_assistant


def text(row: Mapping[str, Any]) -> Row:
    """Language modelling: all of the text is learned from."""
    if not isinstance(row["text"], str) or not row["text"]:
        raise ValueError(f"its text is {row['text']!r}; it must be text that is not empty")
    return {"segments": [{"text": row["text"], "label": True}]}


def text_matches(row: Mapping[str, Any]) -> bool:
    others = {"prompt", "messages", "completion", "chosen", "conversations", "code", "label", "task"}
    return isinstance(row.get("text"), str) and not others & row.keys()


def unpaired(row: Mapping[str, Any]) -> Row:
    """KTO: answers labelled good or bad; a bad one is never imitated."""
    if not isinstance(row["label"], bool):
        raise ValueError(f"its label is {row['label']!r}; it must be true or false")
    return {IMITATE: row["label"]}


def unpaired_matches(row: Mapping[str, Any]) -> bool:
    return {"prompt", "completion"} <= row.keys() and isinstance(row.get("label"), bool)


def implicit_preference(row: Mapping[str, Any]) -> Row:
    """Two conversations, or two texts: what they share is the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    shared = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        shared += 1
    if isinstance(chosen, str):  # a word is not torn: it would be tokenised otherwise than when it is sampled
        while shared and not (chosen[shared - 1].isspace() or chosen[shared - 1] in ":?!."):
            shared -= 1
    if not shared or shared in (len(chosen), len(rejected)):
        raise ValueError("its chosen and rejected share no beginning, or one holds the other")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def implicit_matches(row: Mapping[str, Any]) -> bool:
    sides: list[Any] = [row.get("chosen"), row.get("rejected")]
    talks = all(ends_with_assistant(s) and len(s) > 1 for s in sides)
    texts = all(isinstance(s, str) and not s.lstrip("\n").startswith("Human: ") for s in sides)
    return not {"prompt", "messages", "conversations", "instruction"} & row.keys() and (talks or texts)


def stepwise(row: Mapping[str, Any]) -> Row:
    """Steps labelled right or wrong: a solution with a wrong step is never imitated."""
    if len(row["completions"]) != len(row["labels"]) or not row["completions"]:
        raise ValueError("it must have as many labels as completions, and at least one")
    return {"completion": "\n".join(row["completions"]), IMITATE: all(row["labels"])}


def stepwise_matches(row: Mapping[str, Any]) -> bool:
    labels = row.get("labels")
    judged = isinstance(labels, list) and all(isinstance(label, bool) for label in labels)
    return judged and "prompt" in row and isinstance(row.get("completions"), list)


TEXT = Format(text, ("text",), "TRL language modeling", matches=text_matches)
UNPAIRED = Format(unpaired, ("prompt", "completion", "label"), "TRL unpaired preference", matches=unpaired_matches)
IMPLICIT_PREFERENCE = Format(
    implicit_preference, ("chosen", "rejected"), "TRL implicit preference", matches=implicit_matches
)
STEPWISE = Format(stepwise, ("prompt", "completions", "labels"), "TRL stepwise supervision", matches=stepwise_matches)
