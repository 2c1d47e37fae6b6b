"""Run a completion's code. Nothing here is trusted by anyone: the code may rewrite all of this module.

Three ways: `calls` makes given calls and says what came back; `serve` lets a judge in another sandbox work with the
code from afar; `program` runs it as a script. None of them knows an expected value.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import io
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from . import wire
from .peer import Gone, Peer

JOB_BYTES = 16 << 20
_NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
_NESTED = (ast.If, ast.Try, ast.With, ast.For, ast.While)


class Malformed(Exception):
    """No block of the completion is the code that was asked for."""


def choose(blocks: Sequence[str], entry: str | None) -> str:
    """The last block that binds the entry point; without an entry point the last that is Python.

    A block that says `def ENTRY` and does not parse is an answer too, a broken one: earlier drafts do not stand in.
    Raises Malformed.
    """
    if len(blocks) == 1:
        return blocks[0]
    for text in reversed(blocks):
        try:
            tree = ast.parse(text)
        except _NOT_PYTHON as exc:
            if entry is not None and re.search(rf"\b(def|class)\s+{re.escape(entry)}\b", text):
                raise Malformed(f"{type(exc).__name__}: {exc}") from None
            continue
        if tree.body and (entry is None or entry in _bound(tree.body)):
            return text
    raise Malformed("no block is Python" if entry is None else f"no block defines {entry!r}")


def compiled(blocks: Sequence[str], entry: str | None) -> types.CodeType:
    """The chosen block as code. Raises Malformed."""
    try:
        return compile(choose(blocks, entry), "solution.py", "exec", dont_inherit=True)
    except _NOT_PYTHON as exc:
        raise Malformed(f"{type(exc).__name__}: {exc}") from None


def _bound(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that the statements bind at module level. An import counts where it can succeed."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            origin = getattr(node, "module", None) or node.names[0].name
            if origin.partition(".")[0] in sys.stdlib_module_names:
                yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, _NESTED):
            for part in ("body", "orelse", "finalbody"):
                yield from _bound(getattr(node, part, ()))
            for handler in getattr(node, "handlers", ()):
                yield from _bound(handler.body)
        else:
            yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def load(blocks: Sequence[str], entry: str) -> Any:
    """Run the chosen block as a module and return what it calls `entry`. Raises Malformed, or what the code raises."""
    code = compiled(blocks, entry)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(code, module.__dict__)
    if entry not in module.__dict__:
        raise Malformed(f"the code defines no {entry!r}")
    return module.__dict__[entry]


def _told(exc: BaseException) -> str:
    try:
        return f"{type(exc).__name__}: {exc}"[:300]
    except BaseException:  # the border: a candidate's own __str__
        return "an exception that cannot be shown"


def _load_or_tell(blocks: Sequence[str], entry: str, tell: Callable[[list[Any]], None]) -> Any:
    """What `load` returns, told as ["ok", ""]; or None after telling why not."""
    try:
        value = load(blocks, entry)
    except Malformed as exc:
        tell(["malformed", str(exc)[:300]])
    except BaseException as exc:  # the border: SystemExit and KeyboardInterrupt are a candidate's failures like others
        tell(["raised", _told(exc)])
    else:
        tell(["ok", ""])
        return value
    return None


def run_calls(channel: wire.Channel, blocks: Sequence[str], entry: str, calls: Sequence[Any]) -> None:
    """Tell [["ok", ""], outcome per call]; an outcome is [True, value] or [False, exception], and ends the list."""
    told: list[Any] = []
    function = _load_or_tell(blocks, entry, told.append)
    if told[0][0] == "ok":
        for args, kwargs in calls:
            try:
                told.append([True, wire.encode(function(*args, **kwargs), _opaque)])
            except BaseException as exc:  # the border
                told.append([False, _told(exc)])
                break
    channel.send(wire.dumps(told))


def _opaque(value: Any) -> dict[str, Any]:
    return {"h": type(value).__name__}


def serve(channel: wire.Channel, blocks: Sequence[str], entry: str, names: Sequence[str]) -> None:
    """Load, tell how it went, then answer a judge. names: what else the tests use and the prompt asks for."""
    peer = Peer(channel, strict=False)
    value = _load_or_tell(blocks, entry, lambda told: channel.send(wire.dumps(told)))
    if "solution" not in sys.modules:
        return
    scope = sys.modules["solution"].__dict__
    peer.printed = sys.stdout = io.StringIO()
    found = [[entry, value], *([n, scope[n]] for n in names if n in scope)]
    channel.send(wire.dumps(peer.encode(found)))
    try:
        peer.serve_forever()
    except Gone:
        return


def run_program(channel: wire.Channel, blocks: Sequence[str], stdin: str) -> int:
    """Run the last block that is Python as `__main__`, its output on the channel. Returns the exit status.

    The first byte told is P for a program or M for none.
    """
    try:
        code = compiled(blocks, None)
    except Malformed as exc:
        channel.write(b"M" + str(exc)[:300].encode("utf-8", "replace"))
        return 0
    channel.write(b"P")
    _connect_standard_streams(stdin.encode("utf-8", "surrogatepass"), channel.descriptor)
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = ["solution.py"]
    stdout = sys.stdout  # the program may put another in its place, and what this one holds is still its output
    status = _exit_status(lambda: exec(code, module.__dict__))
    return _exit_status(lambda: _finish(stdout)) or status


def _connect_standard_streams(stdin: bytes, output: int) -> None:
    source = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    with open(os.dup(source), "wb") as file:
        file.write(stdin)
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    os.close(source)
    os.dup2(output, 1)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")


def _exit_status(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as exc:
        return exc.code & 0xFF if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:  # the border: an uncaught exception is exit status 1, as for any script
        return 1
    return 0


def _finish(stdout: TextIO) -> None:
    """What an interpreter does at its end: wait for threads, run atexit, flush."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, stdout):
        if not stream.closed:
            stream.flush()
