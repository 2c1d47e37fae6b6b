"""The meaning of every key, read from the schema itself: `whetstone config`, docs/config.md and the JSON Schema.

A field's meaning is the string under it in its dataclass. Types and defaults come from pydantic's JSON Schema and from
the dataclass, so that nothing is written twice.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a block. type and default are words for people; block is the dataclass of a nested block."""

    name: str
    type: str
    default: str
    meaning: str
    block: Any = None


@cache
def meanings(cls: type) -> Mapping[str, str]:
    """Field -> the string under it, of a dataclass and its bases; a base's is used where a field has none."""
    out: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError):  # a class that was not written in a file
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for node, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                out[node.target.id] = " ".join(str(after.value.value).split())
    return out


@cache
def own_schema(cls: type) -> dict[str, Any]:
    """Pydantic's JSON Schema of a block's dataclass."""
    return TypeAdapter(cls).json_schema()


def keys(cls: type, defaults: Mapping[str, Any] | None = None) -> list[Key]:
    """The keys of a block in the order of its dataclass. defaults: what a kind of stage sets beyond the dataclass."""
    schema, sentences, nested = own_schema(cls), meanings(cls), nested_blocks(cls)
    properties = schema.get("properties") or schema["$defs"][cls.__name__]["properties"]
    out = []
    for f in fields(cls):
        if f.name not in properties:
            continue
        given = (defaults or {}).get(f.name, MISSING)
        value = default_of(f) if given is MISSING else given
        words = "required" if value is MISSING else shown(value, nested.get(f.name))
        out.append(Key(f.name, type_words(properties[f.name]), words, sentences.get(f.name, ""), nested.get(f.name)))
    return out


@cache
def nested_blocks(cls: type) -> Mapping[str, type]:
    """Field -> dataclass of the block under it; of a mapping of blocks too."""
    module = inspect.getmodule(cls)
    names = vars(module) if module else {}
    out = {}
    for f in fields(cls):
        words = str(f.type).replace("[", " ").replace("]", " ").replace(",", " ").replace("|", " ").split()
        found = [names[word] for word in words if is_dataclass(names.get(word))]
        if not found:  # a field of a base in another module
            found = [block for base in cls.__mro__[1:-1] if is_dataclass(base)
                     for name, block in nested_blocks(base).items() if name == f.name]  # fmt: skip
        if found:
            out[f.name] = found[0]
    return out


def default_of(f: Field[Any]) -> Any:
    """A field's default as plain data; MISSING for a required one."""
    value = f.default_factory() if f.default_factory is not MISSING else f.default
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def shown(value: Any, block: type | None) -> str:
    """A default in YAML's flow style; of a nested block what differs from the block's own defaults."""
    if block is not None and isinstance(value, Mapping):
        own = {f.name: default_of(f) for f in fields(block)}
        changed = {k: v for k, v in value.items() if own.get(k, MISSING) != v}
        return flow(changed) if changed else "its defaults" if value else "{}"
    return flow(value)


def flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return value if value.isidentifier() else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def type_words(schema: Mapping[str, Any]) -> str:
    """A JSON Schema as a few words: `integer > 0 or null`."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_words(each) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " | ".join(str(v) for v in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "block"
    kind = schema.get("type")
    if kind == "array":
        return f"list of {type_words(schema.get('items') or {})}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"name: {type_words(inner)}" if isinstance(inner, Mapping) and inner else "block"
    return TYPES.get(str(kind), "any") + _range_words(schema)


def _range_words(schema: Mapping[str, Any]) -> str:
    signs = (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))
    limits = [f"{sign} {schema[name]:g}" for name, sign in signs if name in schema]
    return f" {', '.join(limits)}" if limits else ""


def walk(cls: type, prefix: str, defaults: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Key]]:
    """(dotted key, Key) of a block and of every block below it."""
    for key in keys(cls, defaults):
        dotted = f"{prefix}.{key.name}" if prefix else key.name
        yield dotted, key
        if key.block is not None and not key.type.startswith("name:"):
            below = (defaults or {}).get(key.name)
            yield from walk(key.block, dotted, below if isinstance(below, Mapping) else None)


__all__ = ["Key", "keys", "meanings", "nested_blocks", "own_schema", "type_words", "walk"]
