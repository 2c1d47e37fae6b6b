"""The prompt as a teacher sees it: the policy's own, or with a text in front that the policy is not shown.

The text has marks: {demonstration} the row's own completion, {answer} the sampled answer that is being judged, {detail}
what the verifier said about a failed one, {peer} another answer to the same prompt that passed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.config.schema import Prompts
from pipeline.data import chat_template
from pipeline.data.encoding import render_ids
from pipeline.data.prompt_columns import completion_value, has_completion
from pipeline.records import Scored

MARK = re.compile(r"\{(demonstration|answer|detail|peer)\}")


def teacher_prompt_ids(
    scored: Sequence[Scored], shows: str | None, source: Prompts, tokenizer: Any
) -> list[tuple[int, ...] | None]:
    """Per row, the teacher's prompt ids; None where there is nothing to show: a mark without a value.

    shows: the text with its marks; None gives the policy's own prompt.
    """
    if shows is None:
        return [s.rollout.prompt.ids for s in scored]
    passed: dict[int, list[Scored]] = {}
    for one in scored:
        if one.status == "pass":
            passed.setdefault(one.rollout.prompt.index, []).append(one)
    out: list[tuple[int, ...] | None] = []
    for one in scored:
        prompt = one.rollout.prompt
        text = filled(shows, one, passed.get(prompt.index, []), source)
        out.append(None if text is None else tuple(render_ids(prompt.row, source, tokenizer, label=text)))
    return out


def filled(shows: str, one: Scored, passed: Sequence[Scored], source: Prompts) -> str | None:
    """The text with its marks filled; None if one of them has no value. Braces in a value are left as they are."""
    values: dict[str, str] = {"answer": one.rollout.text, "detail": one.detail if one.status != "pass" else ""}
    if "{demonstration}" in shows:
        row = one.rollout.prompt.row
        found = completion_value(row, source, number=0, where="prompts") if has_completion(row, source) else ""
        values["demonstration"] = found if isinstance(found, str) else chat_template.text_of(found)
    values["peer"] = next((p.rollout.text for p in passed if p.rollout.sample != one.rollout.sample), "")
    if any(not values.get(mark) for mark in MARK.findall(shows)):
        return None
    return MARK.sub(lambda found: values[found[1]], shows)
