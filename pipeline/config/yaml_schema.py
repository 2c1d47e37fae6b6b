"""JSON Schema of the YAML, for editors: completes keys, shows their meaning, underlines mistakes while typing."""

from __future__ import annotations

import copy
from typing import Any

from pipeline.config import describe, schema
from pipeline.config.load import TOP, Config
from pipeline.config.registry import KINDS

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of a whole YAML: shared settings, and one block per stage by its kind."""
    definitions: dict[str, Any] = {}
    top = _described(Config, definitions)
    properties = {name: value for name, value in top["properties"].items() if name in TOP}
    by_kind = []
    for kind in sorted(KINDS.values(), key=lambda kind: kind.order):
        definitions[kind.schema.__name__] = _described(kind.schema, definitions)
        block = {"$ref": f"#/$defs/{kind.schema.__name__}"}
        properties[kind.name] = {"anyOf": [block, {"type": "null"}], "description": kind.schema.__doc__}
        by_kind.append({"if": {"properties": {"kind": {"const": kind.name}}}, "then": block})
    own_name = {"type": "object", "properties": {"kind": {"enum": sorted(KINDS)}}, "required": ["kind"],
                "allOf": by_kind}  # fmt: skip
    for name, block_class in _classes().items():
        if name in definitions:
            definitions[name]["description"] = block_class.__doc__
    return {
        "$schema": DRAFT,
        "title": "Whetstone pipeline",
        "type": "object",
        "required": ["run"],
        "properties": properties,
        "additionalProperties": own_name,
        "$defs": dict(sorted(definitions.items())),
    }


def _classes() -> dict[str, type]:
    return {
        name: value for name, value in vars(schema).items() if isinstance(value, type) and hasattr(value, "__doc__")
    }


def _described(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A block's schema with meanings and defaults in it; blocks below it go into the definitions."""
    described = copy.deepcopy(describe.own_schema(cls))
    inner = described.pop("$defs", {})
    if "$ref" in described:
        described = inner.pop(cls.__name__)
    for name, block in {cls.__name__: described, **inner}.items():
        block_class = cls if name == cls.__name__ else _classes()[name]
        sentences = describe.meanings(block_class)
        for key, value in block["properties"].items():
            block["properties"][key] = _list_or_one(value) | {"description": sentences.get(key, "")}
            block["properties"][key].pop("title", None)
        block["additionalProperties"] = False
        block.pop("title", None)
        if name != cls.__name__:
            definitions.setdefault(name, block)
    return described


def _list_or_one(value: dict[str, Any]) -> dict[str, Any]:
    """A single value may stand where a list of one is meant."""
    if value.get("type") == "array" and value.get("items", {}).get("type") != "array":
        default = {"default": value.pop("default")} if "default" in value else {}
        return {"anyOf": [value, value["items"]], **default}
    if "anyOf" in value:
        more = [each["items"] for each in value["anyOf"] if each.get("type") == "array"]
        return {**value, "anyOf": [*value["anyOf"], *(each for each in more if each not in value["anyOf"])]}
    return value


__all__ = ["json_schema"]
