"""JSON that fits a schema, and equals a value where the task has one.

The JSON is the whole completion after its thinking, or its last ```json fence. Read strictly: no NaN, no key twice.
The schema is the task's and trusted; the text is not, so patterns are matched with a time limit, references are never
fetched, and deep or long texts are refused before they are checked.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed
from verifiers.sandbox import extract

MAX_CHARS = 50_000
MAX_DEPTH = 60
PATTERN_TIMEOUT_S = 0.2


class Task(TypedDict):
    schema: dict[str, Any]  # JSON Schema, draft 2020-12
    equals: NotRequired[Any]  # the value it must be; 1 and 1.0 are one number, True is none


class _Unreadable(ValueError):
    """Not JSON as we read it."""


def read_json(text: str) -> Any:
    """Raises ValueError."""
    if len(text) > MAX_CHARS:
        raise _Unreadable(f"longer than {MAX_CHARS} characters")
    depth = deepest = 0
    for char in text:  # brackets within strings count too: a bound, not a parser
        depth += (char in "[{") - (char in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise _Unreadable("nested too deeply")
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)


def _whole(number: str) -> int:
    _finite(number)  # `multipleOf` divides, and what a float does not hold raises there
    return int(number)


def _finite(number: str) -> float:
    found = float(number)
    if math.isinf(found):
        raise _Unreadable(f"{number[:20]} is beyond what a float holds")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unreadable("a key stands twice")
    return found


def _refuse(name: str) -> Any:
    raise _Unreadable(f"{name} is not JSON")


def same(left: Any, right: Any) -> bool:
    """JSON equality: Python's own takes True for 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """jsonschema's `pattern`, with a time limit."""
    from jsonschema import ValidationError

    if isinstance(instance, str):
        try:
            found = importlib.import_module("regex").search(pattern, instance, timeout=PATTERN_TIMEOUT_S)
        except TimeoutError:
            yield ValidationError(f"no match of {pattern!r} within {PATTERN_TIMEOUT_S:g} s")
            return
        if not found:
            yield ValidationError(f"{instance[:60]!r} does not match {pattern!r}")


@lru_cache(maxsize=512)
def _validator(schema_text: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError, validators
    from referencing import Registry

    schema = json.loads(schema_text)
    if "patternProperties" in schema_text:
        raise ValueError("patternProperties is not supported: its patterns cannot be matched with a time limit")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise ValueError(f"the schema: {exc.message}") from None
    # an empty registry: a reference outside the schema is an error of the task, never a request
    return validators.extend(Draft202012Validator, {"pattern": _pattern})(schema, registry=Registry())


def verify(completion: str, task: Task) -> Verdict:
    validator = _validator(json.dumps(task["schema"], sort_keys=True))
    said = extract.last_block(after_thinking(completion), ("json",)) or ""
    try:
        value = read_json(said.strip())
    except (ValueError, RecursionError) as exc:
        return malformed(f"no JSON: {str(exc)[:100]}")
    error = next(iter(validator.iter_errors(value)), None)
    if error is not None:
        return failed(f"at {error.json_path}: {error.message[:150]}")
    if "equals" in task and not same(value, task["equals"]):
        return failed("it fits the schema and is another value")
    return passed()


_PERSON = {
    "schema": {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
}
_SLOW = {"schema": {"type": "string", "pattern": "^(a+)+b$"}}
EXAMPLES = (
    Example("right", '{"name": "Ada", "age": 36}', _PERSON),
    Example("right", 'Here:\n```json\n{"age": 36, "name": "Ada"}\n```', _PERSON),
    Example("right", "[1.0, true, null]", {"schema": {"type": "array"}, "equals": [1, True, None]}),
    Example("right", '"aab"', _SLOW),
    Example("wrong", '{"name": "Ada"}', _PERSON),
    Example("wrong", '{"name": "Ada", "age": -1}', _PERSON),
    Example("wrong", '{"name": "Ada", "age": true}', _PERSON),
    Example("wrong", '{"name": "Ada", "age": 36, "x": 1}', _PERSON),
    Example("wrong", "[true, 1, null]", {"schema": {"type": "array"}, "equals": [1, True, None]}),
    Example("malformed", "", _PERSON),
    Example("malformed", "1e400", {"schema": {"type": "number", "multipleOf": 0.01}}),
    Example("malformed", '{"name": "Ada", "age": 36', _PERSON),
    Example("right", 'By\n```python\nf()\n```\nit is\n```json\n{"name": "Ada", "age": 36}\n```', _PERSON),
    Example("malformed", '<think>perhaps\n```json\n{"name": "Ada", "age": 36}\n```', _PERSON),
    Example("malformed", "9" * 400, {"schema": {"type": "number", "multipleOf": 0.5}}),
    Example("malformed", '{"name": "Ada", "age": NaN}', _PERSON),
    Example("malformed", 'It is {"name": "Ada", "age": 36}.', _PERSON),
    Example("hostile", '{"name": "Ada", "age": 36, "age": 37}', _PERSON),
    Example("hostile", '{"name": "Ada", "age": 36} {"name": "Bob", "age": 3}', _PERSON),
    Example("hostile", '{"name": {"$ref": "#"}, "age": 36}', _PERSON),
    Example("hostile", '"' + "a" * 45_000 + '"', _SLOW),
    Example("hostile", "9" * 5000, {"schema": {"type": "string"}}),
    Example("hostile", "[" * 40_000, _PERSON),
)
