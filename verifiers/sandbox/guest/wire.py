"""Encode values as JSON between processes that do not trust each other: plain data by content, the rest by handle.

None, bool, int, str, float and list are encoded directly. Anything else is an object with one key, its tag:

    t tuple   s set   f frozenset   d dict, as pairs   b bytes   B bytearray   c complex   i an int too long for JSON
    k a value of the standard library, by name and parts (Decimal, deque, range, ...) or a builtin by its name
    m a value of the candidate's own subclass of plain data: [its plain content, its handle]
    or the tag that `export` returns for an object that is not data

Content is read at the C level (`list.__iter__`, not `iter`), so a subclass cannot misreport its content by accident.
Decoding builds only these types, and is safe on hostile bytes up to the size the reader allows: the depth of the JSON
scanner is bounded, long integers are hexadecimal, and nothing is imported or called.
"""

from __future__ import annotations

import builtins
import importlib
import json
import marshal
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 150  # encoding uses two frames per level
_LONG_INT = 1 << 8192  # below Python's limit of 4300 digits
Export = Callable[[Any], dict[str, Any]]
Resolve = Callable[[str, Any], Any]

# module and name -> (its parts, how to build it from its decoded parts and its class); nothing is imported for this
_LIBRARY: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "decimal.Decimal": (str, lambda p, cls: cls(p)),
    "fractions.Fraction": (lambda v: [v.numerator, v.denominator], lambda p, cls: cls(*p)),
    "datetime.datetime": (lambda v: v.isoformat(), lambda p, cls: cls.fromisoformat(p)),
    "datetime.date": (lambda v: v.isoformat(), lambda p, cls: cls.fromisoformat(p)),
    "datetime.time": (lambda v: v.isoformat(), lambda p, cls: cls.fromisoformat(p)),
    "datetime.timedelta": (lambda v: [v.days, v.seconds, v.microseconds], lambda p, cls: cls(*p)),
    "builtins.range": (lambda v: [v.start, v.stop, v.step], lambda p, cls: cls(*p)),
    "builtins.slice": (lambda v: [v.start, v.stop, v.step], lambda p, cls: cls(*p)),
    "collections.Counter": (lambda v: list(dict.items(v)), lambda p, cls: cls(dict(p))),
    "collections.OrderedDict": (lambda v: list(v.items()), lambda p, cls: cls(p)),
    "collections.deque": (lambda v: [list(v), v.maxlen], lambda p, cls: cls(*p)),
    "builtins.dict_keys": (list, lambda p, cls: dict.fromkeys(p).keys()),
    "builtins.dict_values": (list, lambda p, cls: dict(enumerate(p)).values()),
    "builtins.dict_items": (list, lambda p, cls: dict(p).items()),
    "builtins.ellipsis": (lambda v: None, lambda p, cls: Ellipsis),
    "builtins.NotImplementedType": (lambda v: None, lambda p, cls: NotImplemented),
}

_BUILTIN_KINDS = (type, type(len))

# base types of encoded subclasses; bool has no subclasses, and subclasses of complex are sent as handles
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (list, lambda v: list(list.__iter__(v))),
    (tuple, lambda v: tuple(tuple.__iter__(v))),
    (dict, lambda v: dict(dict.items(v))),
    (set, lambda v: set(set.__iter__(v))),
    (frozenset, lambda v: frozenset(frozenset.__iter__(v))),
    (bytes, lambda v: bytes.__getitem__(v, slice(None))),
)


def encode(value: Any, export: Export, depth: int = MAX_DEPTH) -> Any:
    """Convert `value` to what json.dumps accepts. Raises ValueError if it is nested deeper than MAX_DEPTH."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -_LONG_INT < value < _LONG_INT else {"i": hex(value)}
    if depth <= 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    depth -= 1
    if kind is list:
        return [encode(v, export, depth) for v in value]
    if kind is tuple:
        return {"t": [encode(v, export, depth) for v in value]}
    if kind is dict:
        return {"d": [[encode(k, export, depth), encode(v, export, depth)] for k, v in value.items()]}
    if kind is set or kind is frozenset:
        return {"s" if kind is set else "f": [encode(v, export, depth) for v in value]}
    if kind is bytes or kind is bytearray:
        return {"b" if kind is bytes else "B": value.hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    return _encode_object(value, kind, export, depth)


def _encode_object(value: Any, kind: type, export: Export, depth: int) -> Any:
    qualified_name = f"{kind.__module__}.{kind.__qualname__}"
    if qualified_name in _LIBRARY and not getattr(value, "tzinfo", None):  # a time zone is code: use a handle
        return {"k": [qualified_name, encode(_LIBRARY[qualified_name][0](value), export, depth)]}
    name = getattr(value, "__name__", None) if kind in _BUILTIN_KINDS else None
    if name is not None and builtins.__dict__.get(name) is value:
        return {"k": ["builtin", name]}
    for base, content in _BASES:
        if isinstance(value, base) and issubclass(kind, base):
            return {"m": [encode(content(value), export, depth), export(value)]}
    return export(value)


def _build_library(payload: list[Any]) -> Any:
    place, parts = payload
    if place == "builtin":
        return builtins.__dict__[str(parts)]
    module, _, name = place.rpartition(".")
    _, build = _LIBRARY[place]
    return build(parts, getattr(importlib.import_module(module), name, None))


_DECODE: dict[str, Callable[[Any], Any]] = {
    "t": tuple,
    "s": set,
    "f": frozenset,
    "d": dict,
    "b": bytes.fromhex,
    "B": bytearray.fromhex,
    "c": lambda parts: complex(*parts),
    "i": lambda text: int(text, 16),
    "k": _build_library,
}


def decoder(resolve: Resolve) -> Callable[[bytes], Any]:
    """Return a function that decodes bytes. resolve(tag, payload) builds tagged values that are not data, or raises.

    The function raises ValueError, TypeError, KeyError or RecursionError if the bytes are not a valid value.
    """

    def build(tagged: dict[str, Any]) -> Any:
        if len(tagged) != 1:
            raise ValueError("a tagged value has one key")
        ((tag, payload),) = tagged.items()
        simple = _DECODE.get(tag)
        return simple(payload) if simple else resolve(tag, payload)

    scan = json.JSONDecoder(object_hook=build).decode
    return lambda data: scan(data.decode("ascii"))


BAD_BYTES = (ValueError, TypeError, LookupError, RecursionError, ArithmeticError, AttributeError)


_to_json = json.JSONEncoder(separators=(",", ":")).encode


def dumps(encoded: Any) -> bytes:
    return _to_json(encoded).encode("ascii")


def dump_job(job: list[Any]) -> bytes:
    """Serialize a job for a sample: plain data, only from the trusted process. Raises ValueError."""
    return marshal.dumps(job)


def load_job(data: bytes) -> Any:
    return marshal.loads(data)


# messages of fixed size on the control socket of the zygote
HEADER = struct.Struct("<6d")  # the fields of Limits, in order; sent with the descriptors of the sample
# wait status; the numbers of worker.SampleReport; whether it was late
REPORT = struct.Struct("<i7d?")
EXTENDED = b"x"  # the sample gets more time: sent by the zygote, or by us to a judge whose code got more time
EXTENSIONS = 3  # maximum number, each as long as the first deadline
BUSY_SHARE = 0.02  # share of one core: a sample that used more was not asleep
UP = b"up"
KILL = b"k"
# first byte of a sample on its channel
READY = b"R"
NOT_READY = b"E"  # followed by the reason


class Closed(Exception):
    """The other side closed the connection, in the middle of a message or between two messages."""


class TooLong(Exception):
    """The other side announced a message longer than the reader allows."""


class Channel:
    """Messages of bytes over a stream: four bytes of length, then the body. This end uses a plain file descriptor.

    (A socket object costs a forked process a hundred pages.)
    """

    _LENGTH = struct.Struct("<I")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._received = bytearray()

    def send(self, body: bytes) -> None:
        """Raises Closed."""
        try:
            self.write(self._LENGTH.pack(len(body)) + body)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def receive(self, at_most: int) -> bytes:
        """The next message. Raises Closed, TooLong, or, if this end has a deadline, TimeoutError."""
        size = self._LENGTH.size
        self._receive_up_to(size)
        (length,) = self._LENGTH.unpack_from(self._received)
        if length > at_most:
            raise TooLong(f"{length} bytes, more than {at_most}")
        self._receive_up_to(size + length)
        message = bytes(self._received[size : size + length])
        del self._received[: size + length]
        return message

    def _receive_up_to(self, count: int) -> None:
        """Received bytes stay in the buffer, so that the call can be repeated after a TimeoutError."""
        while len(self._received) < count:
            self._more()

    def drain(self, at_most: int) -> bytes:
        """All bytes until the end of the stream. Raises TooLong."""
        try:
            while len(self._received) <= at_most:
                self._more()
        except Closed:
            return bytes(self._received)
        raise TooLong(f"more than {at_most} bytes")

    def write(self, data: bytes) -> None:
        """Write all of data, without a length prefix."""
        while data:
            data = data[os.write(self.descriptor, data) :]

    def _read(self) -> bytes:
        return os.read(self.descriptor, 1 << 16)

    def _more(self) -> None:
        try:
            chunk = self._read()
        except ConnectionResetError:
            raise Closed from None
        if not chunk:
            raise Closed
        self._received += chunk


class SocketChannel(Channel):
    """The trusted end: a socket whose timeout applies to each operation."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.fileno())
        self._socket = sock

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _read(self) -> bytes:
        return self._socket.recv(1 << 16)
