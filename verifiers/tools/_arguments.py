"""Whether the arguments of a call fit the function: names, and types as far as its hints name JSON types."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

JSON_NAMES: dict[Any, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false",
                              list: "a list", dict: "an object", type(None): "null"}  # fmt: skip


class ToolError(ValueError):
    """The call is wrong; the text says how, to the model."""


def checked_arguments(name: str, function: Callable[..., Any], arguments: Any) -> dict[str, Any]:
    """The arguments to call the function with. Raises ToolError naming the argument."""
    if not isinstance(arguments, Mapping):
        raise ToolError(f"{name}: the arguments must be an object, found {_shown(arguments)}")
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = [key for key in arguments if key not in parameters]
        if unknown:
            raise ToolError(f"{name} has no argument {str(unknown[0])[:80]!r}; it takes: {', '.join(parameters)}")
    for key, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and key not in arguments
            and parameter.kind is not parameter.VAR_KEYWORD
        ):
            raise ToolError(f"{name} needs the argument {key!r}")
    hints = _hints(function)
    return {str(key): _fitted(name, str(key), value, hints.get(key, Any)) for key, value in arguments.items()}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # hints that name what is imported for the type checker alone: nothing to check
        return {}


def _fitted(name: str, key: str, value: Any, hint: Any) -> Any:
    """The value, a whole number as a float where one is wanted. Raises ToolError."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not fits(value, hint):
        raise ToolError(f"{name}: the argument {key!r} must be {described(hint)}, found {_shown(value)}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of the hinted type; hints that JSON does not know fit everything."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Annotated:
        return fits(value, parts[0])
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, parts[1]) for item in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in JSON_NAMES else True


def described(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(part) for part in parts)
    if origin is typing.Annotated:
        return described(parts[0])
    return JSON_NAMES.get(origin or hint, str(hint))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__: Sequence[str] = ("ToolError", "checked_arguments", "described", "fits")
