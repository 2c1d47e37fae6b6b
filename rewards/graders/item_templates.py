"""The templates of OpenAI's graders: `{{ item.reference_answer }}`, `{{ sample.output_json.total }}`.

Two namespaces, `item` (the row's columns) and `sample` (what was sampled), then a path through structs and lists. A
name alone is looked up; nothing is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MARK = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_PATH = re.compile(r"(item|sample)((?:\.\w+|\[\d+\]|\[\"[^\"]*\"\]|\['[^']*'\])*)$")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[[\"'](.*?)[\"']\]")
SAMPLE_FIELDS = ("output_text", "output_json", "output_tools", "choices")


class MissingValue(LookupError):
    """The row holds nothing under the path that a template names."""


def steps_of(mark: str) -> list[str | int]:
    """`item.tests[0].name` -> ["item", "tests", 0, "name"]. Raises ValueError for anything but a path."""
    found = _PATH.match(mark)
    if found is None:
        raise ValueError(f"{{{{ {mark} }}}} is not a path in item or sample, such as {{{{ item.reference_answer }}}}")
    steps: list[str | int] = [found[1]]
    for name, number, quoted in _STEP.findall(found[2]):
        steps.append(int(number) if number else name or quoted)
    if steps[0] == "sample" and len(steps) > 1 and steps[1] not in SAMPLE_FIELDS:
        raise ValueError(f"{{{{ {mark} }}}}: sample has {', '.join(SAMPLE_FIELDS)}")
    return steps


def paths(template: str) -> Iterator[list[str | int]]:
    """The path of every mark of a template. Raises ValueError for a mark that is no path."""
    for mark in MARK.finditer(template):
        yield steps_of(mark[1])


def looked_up(steps: Sequence[str | int], scope: Mapping[str, Any]) -> Any:
    """The value at a path. Raises MissingValue."""
    value: Any = scope
    for step in steps:
        if isinstance(value, Mapping) and str(step) in value:
            value = value[str(step)]
        elif isinstance(value, list | tuple) and str(step).isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise MissingValue(f"no {'.'.join(map(str, steps))}")
    return value


def filled(template: str, scope: Mapping[str, Any]) -> str:
    """The template with every mark replaced: text as it is, other values as JSON. Raises MissingValue."""
    return MARK.sub(lambda mark: as_text(looked_up(steps_of(mark[1]), scope)), template)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


__all__ = ["MARK", "MissingValue", "as_text", "filled", "looked_up", "paths", "steps_of"]
