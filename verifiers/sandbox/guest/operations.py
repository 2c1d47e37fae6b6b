"""Operations that one process may request on an object of another, by name: calls, attributes, operators, iteration."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any


def _take(iterator: Iterator[Any], count: int) -> tuple[list[Any], BaseException | None]:
    """Up to `count` items, and the exception that ended the iteration, if any."""
    taken: list[Any] = []
    try:
        while len(taken) < count:
            taken.append(next(iterator))
    except BaseException as exc:  # the untrusted border: raised again where the items are used
        return taken, exc
    return taken, None


def _await(awaitable: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await awaitable

    return asyncio.run(wait())


BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
COMPARE = "eq ne lt le gt ge".split()
UNARY: dict[str, Callable[..., Any]] = {
    "len": len, "bool": bool, "str": str, "repr": repr, "format": format, "hash": hash, "int": int, "float": float,
    "complex": complex, "index": operator.index, "round": round, "abs": abs, "neg": operator.neg, "pos": operator.pos,
    "invert": operator.invert, "reversed": reversed, "next": next, "getitem": operator.getitem,
    "setitem": operator.setitem, "delitem": operator.delitem, "copy": copy.copy, "deepcopy": copy.deepcopy,
}  # fmt: skip
OPERATIONS: dict[str, Callable[..., Any]] = {
    **UNARY,
    "call": lambda obj, *args, **kwargs: obj(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "iter": iter,
    "take": _take,
    "contains": operator.contains,
    "send": lambda generator, value: generator.send(value),
    "close": lambda generator: generator.close(),
    "await": _await,
    "enter": lambda obj: type(obj).__enter__(obj),
    "exit": lambda obj, *args: type(obj).__exit__(obj, *args),
    "instancecheck": lambda cls, obj: isinstance(obj, cls),
    "subclasscheck": lambda cls, other: issubclass(other, cls),
    "divmod": divmod,
    "rdivmod": lambda obj, other: divmod(other, obj),
}
for _name in BINARY:
    _function = getattr(operator, f"__{_name}__")
    OPERATIONS[_name] = _function
    OPERATIONS["r" + _name] = lambda obj, other, _function=_function: _function(other, obj)
    OPERATIONS["i" + _name] = getattr(operator, f"__i{_name}__")
for _name in COMPARE:
    OPERATIONS[_name] = getattr(operator, _name)
