"""`Remote`: proxy for an object of another process (peer.py), and the operations it allows.

If the owner is hostile (a `strict` peer), a Remote never equals, precedes, contains or adds to plain data: a value that
a test compares must be data itself, so an object whose `__eq__` always returns True, or whose `__sub__` returns 0.0,
gains nothing. The exception is an object that the test itself created by calling the class under test and that its
owner never sent in any other way: its operators are what is being tested.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .mirror import Mixed
from .operations import BINARY, COMPARE, UNARY

if TYPE_CHECKING:
    from .peer import Peer

_RAISE = dis.opmap["RAISE_VARARGS"]
# boolean methods of plain data: on an untrusted object they would let it grade itself
_PREDICATES = frozenset(
    name
    for kind in (str, set, float)
    for name in dir(kind)
    if name.startswith("is") or name in ("startswith", "endswith")
)


class Remote:
    """Proxy for an object of the other process."""

    __slots__ = ("_remote_ident_", "_remote_made_", "_remote_makes_", "_remote_peer_")

    def __init__(self, peer: Peer, ident: int, *, makes: bool = False) -> None:
        """makes: it is the class under test, as named by the test itself."""
        set_slot = object.__setattr__
        set_slot(self, "_remote_peer_", peer)
        set_slot(self, "_remote_ident_", ident)
        set_slot(self, "_remote_makes_", makes)
        set_slot(self, "_remote_made_", False)  # created by calling that class

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._remote_peer_.ask("call", self._remote_ident_, args, kwargs)
        if self._remote_makes_:
            if isinstance(result, Mixed):  # a class under test that extends list or dict is judged by its methods
                result = result._remote_
            if type(result) is Remote:
                object.__setattr__(result, "_remote_made_", True)
                self._remote_peer_.handed[result._remote_ident_] -= 1
        return result

    def __getattr__(self, name: str) -> Any:
        if name in _PREDICATES and self._remote_peer_.strict and not _is_the_tests_own(self):
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
        swallow = self._remote_peer_.ask("exit", self._remote_ident_, (kind, exc, None))
        return swallow and _may_be_swallowed(exc)

    def __await__(self) -> Iterator[Any]:
        return self._remote_peer_.ask("await", self._remote_ident_)
        yield  # makes this a generator, as `await` requires

    def __aiter__(self) -> Remote:
        return self

    async def __anext__(self) -> Any:
        step = self._remote_peer_.ask("getattr", self._remote_ident_, ("__anext__",))()
        return await step

    async def __aenter__(self) -> Any:
        return await self._remote_peer_.ask("getattr", self._remote_ident_, ("__aenter__",))()

    async def __aexit__(self, kind: Any, exc: Any, traceback: Any) -> Any:
        swallow = await self._remote_peer_.ask("getattr", self._remote_ident_, ("__aexit__",))(kind, exc, None)
        return swallow and _may_be_swallowed(exc)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._remote_peer_.ask("deepcopy", self._remote_ident_)


def _is_the_tests_own(remote: Remote) -> bool:
    """Whether the test created it by calling the class under test and the other side never sent it in another way."""
    return remote._remote_made_ and not remote._remote_peer_.handed[remote._remote_ident_]


def _may_meet(remote: Remote, other: Any) -> bool:
    """Whether the other side may be asked to compare or combine the two."""
    return isinstance(other, Remote | Mixed) or not remote._remote_peer_.strict or _is_the_tests_own(remote)


def _may_be_swallowed(exc: BaseException) -> bool:
    """Whether a context manager under test may suppress exc: yes if the test raised it on purpose.

    It may not suppress what `assert` raises, and what refused operations raise only if the test contains `raise`.
    """
    if isinstance(exc, AssertionError):
        return False
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    raised = traceback is not None and traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == _RAISE
    return raised or not isinstance(exc, TypeError | AttributeError | LookupError)


def _walk(iterator: Remote) -> Iterator[Any]:
    """Yield items, requested one at a time at first and then in growing batches, to save round trips."""
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
    """Request an operation that usually returns the object itself, which does not count as sending it."""
    result = remote._remote_peer_.ask(operation, remote._remote_ident_, args)
    if result is remote:
        remote._remote_peer_.handed[remote._remote_ident_] -= 1
    return result


def _asking(operation: str) -> Callable[..., Any]:
    return lambda self, *args: self._remote_peer_.ask(operation, self._remote_ident_, args)


def _meeting(operation: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any, *rest: Any) -> Any:
        if not _may_meet(self, other):
            return NotImplemented
        return _ask_and_stay(self, operation, (other, *rest))

    return method


for _name in (*(n for n in UNARY if n != "deepcopy"), "instancecheck", "subclasscheck"):
    setattr(Remote, f"__{_name}__", _asking(_name))
for _name in (*BINARY, "divmod"):
    setattr(Remote, f"__{_name}__", _meeting(_name))
    setattr(Remote, f"__r{_name}__", _meeting("r" + _name))
for _name in (*(f"i{n}" for n in BINARY), *COMPARE):
    setattr(Remote, f"__{_name}__", _meeting(_name))


def local_generator(remote: Remote) -> Iterator[Any]:
    """A real generator, for tests that check whether it is one."""
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


async def local_coroutine(remote: Remote) -> Any:
    return remote._remote_peer_.ask("await", remote._remote_ident_)
