"""JSON that fits a schema, and equals a value where the task has one.

The JSON is the whole completion after its thinking, its last json fence, or what stands in its <answer> tags. Read
strictly: no NaN, no key twice. The dialect is the schema's own `$schema` (draft-03 to 2020-12, the default). `format`
is checked for the formats of _json_formats.py, as whoever writes one into a grader's schema means it; `formats: false`
makes it an annotation, which is 2020-12's own default.
The schema is the task's and trusted; the text is not, so patterns are matched with a time limit, references are never
fetched, and deep or long texts are refused before they are checked.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed
from verifiers._json_formats import FORMATS, ecma
from verifiers.sandbox import extract

MAX_CHARS = 50_000
MAX_DEPTH = 60
PATTERN_TIMEOUT_S = 0.2
ALL_PATTERNS_S = 0.8  # of one verdict
LANGUAGES = ("json", "jsonc", "json5")
_STARTS = re.compile(r"\s*[\[{\"]")
_SIMPLE = re.compile(r"[^()*+{|]*[*+]?[^()*+{|]*")  # linear for any matcher


class Task(TypedDict):
    schema: dict[str, Any]  # JSON Schema
    equals: NotRequired[Any]  # the value it must be; 1 and 1.0 are one number, True is none
    formats: NotRequired[bool]  # false: `format` is not checked


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
    value = float(number)
    if math.isinf(value):
        raise _Unreadable(f"{number[:20]} is beyond what a float holds")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Unreadable("a key stands twice")
    return value


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


_clock = threading.local()


def _matches(pattern: str, text: str) -> bool:
    """Whether the ECMA pattern is found in the text. Raises TimeoutError."""
    left = getattr(_clock, "ends", math.inf) - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return _compiled(pattern).search(text, timeout=min(PATTERN_TIMEOUT_S, left)) is not None


@lru_cache(maxsize=2048)
def _compiled(pattern: str) -> Any:
    """Raises ValueError where it is no ECMA pattern."""
    regex = importlib.import_module("regex")
    try:
        return regex.compile(ecma(pattern))
    except regex.error as exc:
        raise ValueError(f"{pattern!r} is no regular expression: {exc}") from None


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """`pattern`, in ECMA's meaning and with a time limit."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "string"):
        try:
            if not _matches(pattern, instance):
                yield ValidationError(f"{instance[:60]!r} does not match {pattern!r}")
        except TimeoutError:
            yield ValidationError(f"no match of {pattern!r} within {PATTERN_TIMEOUT_S:g} s")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    for pattern, inner in patterns.items():
        for name, value in instance.items():
            try:
                applies = _matches(pattern, name)
            except TimeoutError:
                yield ValidationError(f"no match of {pattern!r} within {PATTERN_TIMEOUT_S:g} s")
                return
            if applies:
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, inner: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        try:
            if name in known or any(_matches(pattern, name) for pattern in patterns):
                continue
        except TimeoutError:
            yield ValidationError(f"no match of a pattern within {PATTERN_TIMEOUT_S:g} s")
            return
        if inner is False:
            yield ValidationError(f"{name[:60]!r} is not allowed")
        else:
            yield from validator.descend(value, inner, path=name)


def _multiple_of(validator: Any, factor: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """In decimal: 4.35 is a multiple of 0.01, which binary floats deny."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "number") and (Fraction(repr(instance)) / Fraction(repr(factor))).denominator != 1:
        yield ValidationError(f"{instance!r} is not a multiple of {factor!r}")


KEYWORDS = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "multipleOf": _multiple_of,
    "divisibleBy": _multiple_of,
}


def _format_checker() -> Any:
    from jsonschema import FormatChecker

    checker = FormatChecker(formats=())
    for name, holds in FORMATS.items():
        checker.checks(name)(lambda value, holds=holds: not isinstance(value, str) or holds(value))
    checker.checks("regex", raises=ValueError)(lambda value: not isinstance(value, str) or bool(_compiled(value)))
    return checker


@lru_cache(maxsize=512)
def _validator(schema_text: str, formats: bool) -> Any:
    from jsonschema import SchemaError, validators
    from jsonschema_specifications import REGISTRY

    schema = json.loads(schema_text)
    dialect = _dialect(schema)
    try:
        dialect.check_schema(schema, format_checker=_format_checker())
    except SchemaError as exc:
        raise ValueError(f"the schema: {exc.message}") from None
    if '"unevaluatedProperties"' in schema_text:
        for pattern in _property_patterns(schema):
            if not _SIMPLE.fullmatch(pattern):
                raise ValueError(f"unevaluatedProperties beside the pattern {pattern!r}: it has no time limit there")
    own = {name: keyword for name, keyword in KEYWORDS.items() if name in dialect.VALIDATORS}
    # only the dialects' own schemas are known: a reference elsewhere is an error of the task, never a request
    checker = _format_checker() if formats else None
    return validators.extend(dialect, own)(schema, registry=REGISTRY, format_checker=checker)


def _dialect(schema: Any) -> Any:
    """Raises ValueError for a `$schema` that jsonschema does not know."""
    from jsonschema import Draft202012Validator, validators

    named = schema.get("$schema") if isinstance(schema, dict) else None
    known = validators.validator_for(schema, default=None)
    if named is not None and known is None:
        raise ValueError(f"the schema's $schema {named!r} is not known")
    return Draft202012Validator if named is None else known


def _property_patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        patterns = schema.get("patternProperties")
        yield from patterns if isinstance(patterns, dict) else ()
    if isinstance(schema, dict | list):
        for inner in schema.values() if isinstance(schema, dict) else schema:
            yield from _property_patterns(inner)


def _answer(completion: str) -> str:
    """The JSON text. Tags within a JSON string are no tags."""
    answer = after_thinking(completion).lstrip("\ufeff \t\r\n")
    text = answer if _STARTS.match(answer) else extract.answer(answer)
    return (extract.last_block(text, LANGUAGES, starts=_STARTS) or "").strip("\ufeff \t\r\n")


def verify(completion: str, task: Task) -> Verdict:
    validator = _validator(json.dumps(task["schema"]), task.get("formats", True))
    try:
        value = read_json(_answer(completion))
    except (ValueError, RecursionError) as exc:
        return malformed(f"no JSON: {str(exc)[:100]}")
    _clock.ends = time.monotonic() + ALL_PATTERNS_S
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
