"""Objects of one process, used from another: how tests reach the code they judge.

Two `Peer`s share a channel, symmetrically. Plain data crosses by content (wire.py); anything else stays where it is
and crosses as a handle, which becomes a `Remote` on the other side: calling it, reading an attribute or adding to it
asks the owner. Lists and dicts that a call changes are changed for the caller too, by content. Exceptions are
rebuilt from the nearest class both sides know, so `except ValueError` sees a candidate's subclass of it.

The judge's peer is `strict`, for the candidate is its enemy:

- A Remote never equals, precedes, contains or adds to plain data: what a test compares has to be data itself, so an
  object whose `__eq__` says True to everything, or whose `__sub__` returns 0.0, earns nothing. The exception is an
  object that the test itself made by calling the class under test: its operators are what is being tested.
- The candidate may call what the test passed it, and read public attributes of the test's own objects; not those of
  functions, frames or modules, behind which the tests' expected values lie.
- When the candidate is gone, `Gone` is raised, which no `except Exception` in a test can swallow.
"""

from __future__ import annotations

import copy
import io
import operator
import sys
import threading
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from . import wire
from .mirror import (
    Mixed,
    build_function,
    describe_exception,
    describe_function,
    exception_class,
    make_exception,
    make_mixed,
)

MESSAGE_BYTES = 4 << 20
PRINTED_CHARS = 1 << 16
_MUTABLE = (list, dict, set, bytearray, deque, Counter, OrderedDict)


class Gone(BaseException):
    """The other process ended, or speaks nonsense."""


def _take(iterator: Iterator[Any], count: int) -> tuple[list[Any], BaseException | None]:
    """Up to `count` items, and what ended the iteration, if something did."""
    taken: list[Any] = []
    try:
        while len(taken) < count:
            taken.append(next(iterator))
    except BaseException as exc:  # the border: it is raised again where the items are used
        return taken, exc
    return taken, None


def _await(awaitable: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await awaitable

    return asyncio.run(wait())


_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
_COMPARE = "eq ne lt le gt ge".split()
_UNARY: dict[str, Callable[..., Any]] = {
    "len": len, "bool": bool, "str": str, "repr": repr, "format": format, "hash": hash, "int": int, "float": float,
    "complex": complex, "index": operator.index, "round": round, "abs": abs, "neg": operator.neg, "pos": operator.pos,
    "invert": operator.invert, "reversed": reversed, "next": next, "getitem": operator.getitem,
    "setitem": operator.setitem, "delitem": operator.delitem, "copy": copy.copy, "deepcopy": copy.deepcopy,
}  # fmt: skip
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **_UNARY,
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
for _name in _BINARY:
    _function = getattr(operator, f"__{_name}__")
    _OPERATIONS[_name] = _function
    _OPERATIONS["r" + _name] = lambda obj, other, _function=_function: _function(other, obj)
    _OPERATIONS["i" + _name] = getattr(operator, f"__i{_name}__")
for _name in _COMPARE:
    _OPERATIONS[_name] = getattr(operator, _name)


class Remote:
    """Stands for an object of the other process."""

    __slots__ = ("_remote_ident_", "_remote_kind_", "_remote_peer_", "_remote_subject_")

    def __init__(self, peer: Peer, ident: int, kind: str) -> None:
        set_slot = object.__setattr__
        set_slot(self, "_remote_peer_", peer)
        set_slot(self, "_remote_ident_", ident)
        set_slot(self, "_remote_kind_", kind)
        set_slot(self, "_remote_subject_", False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._remote_peer_.ask("call", self._remote_ident_, args, kwargs)
        if self._remote_ident_ == self._remote_peer_.subject:
            if isinstance(result, Mixed):  # a class under test that extends list or dict is judged by its methods
                result = result._remote_
            if type(result) is Remote:
                object.__setattr__(result, "_remote_subject_", True)
        return result

    def __getattr__(self, name: str) -> Any:
        if not self._remote_subject_ and self._remote_peer_.strict and name in _PREDICATES:
            raise AttributeError(f"{name!r} is asked of data, and the completion returned an object that is none")
        return self._remote_peer_.ask("getattr", self._remote_ident_, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_peer_.ask("setattr", self._remote_ident_, (name, value))

    def __delattr__(self, name: str) -> None:
        self._remote_peer_.ask("delattr", self._remote_ident_, (name,))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._remote_peer_.ask("iter", self._remote_ident_)
        return _walk(iterator) if type(iterator) is Remote else iter(iterator)

    def __contains__(self, item: Any) -> bool:
        if _may_meet(self, item):
            return self._remote_peer_.ask("contains", self._remote_ident_, (item,)) is True
        return any(item is mine or item == mine for mine in self)

    def __enter__(self) -> Any:
        return _ask_and_stay(self, "enter", ())

    def __exit__(self, kind: Any, exc: Any, traceback: Any) -> Any:
        return self._remote_peer_.ask("exit", self._remote_ident_, (kind, exc, None))

    def __await__(self) -> Iterator[Any]:
        return self._remote_peer_.ask("await", self._remote_ident_)
        yield  # makes this a generator, as `await` wants

    def __aiter__(self) -> Remote:
        return self

    async def __anext__(self) -> Any:
        step = self._remote_peer_.ask("getattr", self._remote_ident_, ("__anext__",))()
        return await step

    async def __aenter__(self) -> Any:
        return await self._remote_peer_.ask("getattr", self._remote_ident_, ("__aenter__",))()

    async def __aexit__(self, kind: Any, exc: Any, traceback: Any) -> Any:
        return await self._remote_peer_.ask("getattr", self._remote_ident_, ("__aexit__",))(kind, exc, None)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._remote_peer_.ask("deepcopy", self._remote_ident_)


def _may_meet(remote: Remote, other: Any) -> bool:
    return isinstance(other, Remote | Mixed) or remote._remote_subject_ or not remote._remote_peer_.strict


def _walk(iterator: Remote) -> Iterator[Any]:
    """Items one by one, then ever more at a time, so that a long iteration is not a round trip per item."""
    count = 0
    while True:
        taken, end = iterator._remote_peer_.ask("take", iterator._remote_ident_, (max(1, min(count // 8, 256)),))
        yield from taken
        count += len(taken)
        if isinstance(end, StopIteration):
            return
        if end is not None:
            raise end


def _ask_and_stay(remote: Remote, operation: str, args: tuple[Any, ...]) -> Any:
    """Ask what usually returns the object itself, which does not cost it its being the test's own."""
    was = remote._remote_subject_
    result = remote._remote_peer_.ask(operation, remote._remote_ident_, args)
    if result is remote:
        object.__setattr__(remote, "_remote_subject_", was)
    return result


def _asking(operation: str) -> Callable[..., Any]:
    return lambda self, *args: self._remote_peer_.ask(operation, self._remote_ident_, args)


def _meeting(operation: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any, *rest: Any) -> Any:
        if not _may_meet(self, other):
            return NotImplemented
        return _ask_and_stay(self, operation, (other, *rest))

    return method


for _name in (*(n for n in _UNARY if n != "deepcopy"), "instancecheck", "subclasscheck"):
    setattr(Remote, f"__{_name}__", _asking(_name))
for _name in (*_BINARY, "divmod"):
    setattr(Remote, f"__{_name}__", _meeting(_name))
    setattr(Remote, f"__r{_name}__", _meeting("r" + _name))
for _name in (*(f"i{n}" for n in _BINARY), *_COMPARE):
    setattr(Remote, f"__{_name}__", _meeting(_name))

# methods of plain data that answer yes or no: on a foreign object they would let it grade itself
_PREDICATES = frozenset(
    name
    for kind in (str, set, float)
    for name in dir(kind)
    if name.startswith("is") or name in ("startswith", "endswith")
)
_OPAQUE = (
    types.FunctionType, types.MethodType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType,
    types.FrameType, types.TracebackType, types.CodeType, types.ModuleType,
)  # fmt: skip
_PUBLIC = ("__name__", "__qualname__", "__doc__", "__module__", "__anext__", "__aenter__", "__aexit__")


_KINDS = {
    types.GeneratorType: "generator",
    types.CoroutineType: "coroutine",
    types.FunctionType: "function",
}


def _well_formed(message: Any) -> bool:
    """Whether it is [?, operation, ident, args, kwargs] or [= or !, value, changes, printed]."""
    if type(message) is not list or not message:
        return False
    if message[0] == "?":
        _, operation, ident, args, kwargs = message if len(message) == 5 else (None,) * 5
        return (
            type(operation) is str
            and operation in _OPERATIONS
            and type(ident) is int
            and type(args) is type(kwargs) is list
            and all(type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str for pair in kwargs)
        )
    if message[0] not in ("=", "!") or len(message) != 4:
        return False
    kind, value, changes, printed = message
    return (
        (kind == "=" or isinstance(value, BaseException))
        and type(printed) is str
        and type(changes) is list
        and all(type(c) is list and len(c) == 2 and type(c[0]) is int and c[0] >= 0 for c in changes)
    )


def _overwrite(old: Any, new: Any) -> None:
    """Give a mutable value the content of another of its type."""
    if isinstance(old, list | bytearray):
        old[:] = new
    else:
        old.clear()
        (old.extend if isinstance(old, deque) else old.update)(new)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)[:1000]
    except Exception:  # the border: a candidate's own __str__
        return ""


def _local_generator(remote: Remote) -> Iterator[Any]:
    """A real generator, for tests that ask whether it is one."""
    ask, ident = remote._remote_peer_.ask, remote._remote_ident_
    sent = None
    try:
        while True:
            sent = yield ask("send", ident, (sent,))
    except StopIteration as end:
        return end.value
    except GeneratorExit:
        ask("close", ident)
        raise


async def _local_coroutine(remote: Remote) -> Any:
    return remote._remote_peer_.ask("await", remote._remote_ident_)


class Peer:
    """One end. strict: the other end is hostile. subject: the ident of the class under test, where it is a class."""

    def __init__(self, channel: wire.Channel, *, strict: bool) -> None:
        self.strict = strict
        self.subject: int | None = None
        self.gone = ""
        self.printed: io.StringIO | None = None
        self._channel = channel
        self._lock = threading.RLock()
        self._exports: list[Any] = []
        self._idents: dict[int, int] = {}
        self._remotes: dict[int, Any] = {}
        self._decode = wire.decoder(self._resolve)

    def export(self, value: Any) -> int:
        """The number under which the other side may ask for `value`, which stays alive from now on."""
        ident = self._idents.get(id(value))
        if ident is None:
            ident = self._idents[id(value)] = len(self._exports)
            self._exports.append(value)
        return ident

    def decode(self, data: bytes) -> Any:
        return self._decode(data)

    def encode(self, value: Any) -> Any:
        return wire.encode(value, self._describe)

    def ask(self, operation: str, ident: int, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Have the other side do it. Raises what it raised, or Gone."""
        question = ["?", operation, ident, [self.encode(a) for a in args], self.encode(list((kwargs or {}).items()))]
        with self._lock:
            self._send(question)
            while True:
                message = self._receive()
                if message[0] != "?":
                    return self._settle(message, operation, args)
                self._serve(message)

    def serve_forever(self) -> None:
        """Answer until the other side goes. Raises Gone."""
        while True:
            message = self._receive()
            if message[0] == "?":
                self._serve(message)

    def _lost(self, why: str) -> Gone:
        self.gone = why
        return Gone(why)

    def _send(self, message: list[Any]) -> None:
        try:
            self._channel.send(wire.dumps(message))
        except wire.Closed:
            raise self._lost("it ended") from None

    def _receive(self) -> list[Any]:
        try:
            message = self._decode(self._channel.receive(MESSAGE_BYTES))
        except wire.Closed:
            raise self._lost("it ended") from None
        except Exception as exc:  # the border: hostile bytes can make decoding fail in any way
            raise self._lost(f"its answer cannot be read: {type(exc).__name__}") from None
        if not _well_formed(message):
            raise self._lost("its answer cannot be read: not a message")
        return message

    def _settle(self, message: list[Any], operation: str, args: tuple[Any, ...]) -> Any:
        kind, value, changes, printed = message
        if printed:
            sys.stdout.write(printed)
        for index, content in changes:
            if index < len(args) and type(args[index]) is type(content):
                _overwrite(args[index], content)
        if kind == "=":
            return value
        if isinstance(value, StopIteration | StopAsyncIteration) and operation not in ("next", "send", "await", "call"):
            raise RuntimeError(f"raised {type(value).__name__}")
        if isinstance(value, StopIteration) and operation == "call" and self.strict:
            raise RuntimeError("raised StopIteration")  # else all(map(f, ...)) in a test would end early, and hold
        raise value

    def _serve(self, message: list[Any]) -> None:
        _, operation, ident, args, kwargs = message
        before = [(i, a, self.encode(a)) for i, a in enumerate(args) if type(a) in _MUTABLE]
        try:
            obj = self._exports[ident]
            if operation in ("getattr", "setattr", "delattr"):
                self._check_attribute(obj, args[0])
            kind, value = "=", _OPERATIONS[operation](obj, *args, **dict(kwargs))
        except Gone:
            raise
        except BaseException as exc:  # the border: whatever it is, it is the asker's to handle
            kind, value = "!", exc
        try:
            changes = [[i, now] for i, a, then in before if (now := self.encode(a)) != then]
            self._send([kind, self.encode(value), changes, self._take_printed()])
        except (ValueError, RecursionError) as exc:
            self._send(["!", self.encode(ValueError(f"cannot be sent: {exc}")), [], ""])

    def _take_printed(self) -> str:
        if self.printed is None or not self.printed.tell():
            return ""
        text = self.printed.getvalue()[:PRINTED_CHARS]
        self.printed.seek(0)
        self.printed.truncate()
        return text

    def _check_attribute(self, obj: Any, name: Any) -> None:
        if self.strict and name not in _PUBLIC and (str(name).startswith("_") or isinstance(obj, _OPAQUE)):
            raise AttributeError(name)

    def _describe(self, value: Any) -> dict[str, Any]:
        """What crosses in place of an object that is no plain data."""
        kind = type(value)
        if kind is Remote:
            return {"r": value._remote_ident_}
        if isinstance(value, Mixed):
            return {"r": value._remote_._remote_ident_}
        if isinstance(value, BaseException):
            args = [self.encode(a) for a in value.args]
            return {"x": [describe_exception(kind, self.export), args, _text(value), self.export(value)]}
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"X": describe_exception(value, self.export)}
        name = _KINDS.get(kind) or ("class" if isinstance(value, type) else "object")
        return {"h": [self.export(value), name, describe_function(value) if kind is types.FunctionType else None]}

    def _resolve(self, tag: str, payload: Any) -> Any:
        """What a tag of `_describe` becomes here."""
        if tag == "r":
            return self._exports[payload]
        if tag == "m":
            content, remote = payload
            return make_mixed(content, remote) if type(remote) is Remote else remote
        if tag == "X":
            return exception_class(payload, self._remotes)
        if tag == "x":
            description, args, text, ident = payload
            return make_exception(exception_class(description, self._remotes), args, text, self, ident)
        if tag == "h":
            return self._adopt(*payload)
        raise ValueError(f"unknown tag {tag!r}")

    def _adopt(self, ident: int, kind: str, signature: Any) -> Any:
        if ident in self._remotes:
            known = self._remotes[ident]
            if type(known) is Remote:  # what the other side hands out, by whatever way, is no longer the test's own
                object.__setattr__(known, "_remote_subject_", False)
            return known
        adopted: Any = Remote(self, ident, kind)
        if kind == "generator":
            adopted = _local_generator(adopted)
        elif kind == "coroutine":
            return _local_coroutine(adopted)
        elif kind == "function" and signature and not self.strict:
            adopted = build_function(signature, adopted)
        self._remotes[ident] = adopted
        return adopted
