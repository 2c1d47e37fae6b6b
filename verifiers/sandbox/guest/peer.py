"""Use objects of one process from another process; tests access the code they judge this way.

Two `Peer`s share a channel symmetrically. Plain data is copied (wire.py). Any other object stays in its process and is
sent as a handle, which becomes a `Remote` on the other side: calling it, reading an attribute or adding to it sends a
request to the owner. Lists and dicts that a call changes are also changed for the caller, by content. Exceptions are
rebuilt from the nearest class that both sides know, so `except ValueError` catches a candidate's subclass of it.

The judge's peer is `strict`, because the candidate is hostile. remote.py describes what this means for objects from the
candidate. The candidate may call objects from the judge (a lambda or an instance of a class of a test), and read and
change their public attributes, but not those of functions, frames or modules, from which the expected values could be
reached. When the candidate is gone, `Gone` is raised, which no `except Exception` in a test can catch, and `gone`
stays set.
"""

from __future__ import annotations

import io
import sys
import threading
import types
from collections import Counter, OrderedDict, deque
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
from .operations import OPERATIONS
from .remote import Remote, local_coroutine, local_generator

MESSAGE_BYTES = 4 << 20
PRINTED_CHARS = 1 << 16
_MUTABLE = (list, dict, set, bytearray, deque, Counter, OrderedDict)
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


class Gone(BaseException):
    """The other process ended or sent invalid messages."""


def _well_formed(message: Any) -> bool:
    """Whether it is [?, operation, ident, args, kwargs] or [= or !, value, changes, printed]."""
    if type(message) is not list or not message:
        return False
    if message[0] == "?":
        _, operation, ident, args, kwargs = message if len(message) == 5 else (None,) * 5
        return (
            type(operation) is str
            and operation in OPERATIONS
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
    """Replace the content of a mutable value by that of another value of the same type."""
    if isinstance(old, list | bytearray):
        old[:] = new
    else:
        old.clear()
        (old.extend if isinstance(old, deque) else old.update)(new)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)[:1000]
    except Exception:  # the untrusted border: a candidate's own __str__
        return ""


class Peer:
    """One end of the connection. strict: the other end is hostile."""

    def __init__(self, channel: wire.Channel, *, strict: bool) -> None:
        self.strict = strict
        self.gone = ""
        self.handed: Counter[int] = Counter()  # how often the other side sent each of its objects
        self.printed: io.StringIO | None = None
        self._channel = channel
        self._lock = threading.RLock()
        self._exports: list[Any] = []
        self._idents: dict[int, int] = {}
        self._remotes: dict[int, Any] = {}
        self._decode = wire.decoder(self._resolve)

    def export(self, value: Any) -> int:
        """The number by which the other side can request `value`, which is kept alive from now on."""
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
        """Request an operation from the other side. Raises what it raised, or Gone."""
        question = ["?", operation, ident, [self.encode(a) for a in args], self.encode(list((kwargs or {}).items()))]
        with self._lock:
            self._send(question)
            while True:
                message = self._receive()
                if message[0] != "?":
                    return self._settle(message, operation, args)
                self._serve(message)

    def serve_forever(self) -> None:
        """Answer requests until the other side ends. Raises Gone."""
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
        except Exception as exc:  # the untrusted border: hostile bytes can make decoding fail in any way
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
            raise RuntimeError("raised StopIteration")  # else all(map(f, ...)) in a test would end early and pass
        raise value

    def _serve(self, message: list[Any]) -> None:
        _, operation, ident, args, kwargs = message
        before: list[tuple[int, Any, Any]] = []
        try:
            before += [(i, a, self.encode(a)) for i, a in enumerate(args) if type(a) in _MUTABLE]
            obj = self._exports[ident]
            if operation in ("getattr", "setattr", "delattr"):
                self._check_attribute(obj, args[0])
            kind, value = "=", OPERATIONS[operation](obj, *args, **dict(kwargs))
        except Gone:
            raise
        except BaseException as exc:  # the untrusted border: the caller must handle it
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
        """The description that is sent instead of an object that is not plain data."""
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
        """The local object for a tag produced by `_describe`."""
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
        self.handed[ident] += 1
        if ident in self._remotes:
            return self._remotes[ident]
        adopted: Any = Remote(self, ident)
        if kind == "generator":
            adopted = local_generator(adopted)
        elif kind == "coroutine":
            return local_coroutine(adopted)
        elif kind == "function" and signature and not self.strict:
            adopted = build_function(signature, adopted)
        self._remotes[ident] = adopted
        return adopted
