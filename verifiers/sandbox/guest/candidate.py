"""Run the code of a completion. Nothing in this process is trusted: the code may overwrite all of this module.

Three modes: `run_calls` makes the given calls and reports the results; `serve` lets a judge in another sandbox use the
code remotely; `run_program` runs it as a script. None of them has access to an expected value.
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
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NESTED = (ast.If, ast.Try, ast.With, ast.For, ast.While)


class Malformed(Exception):
    """No block of the completion contains the requested code."""


def choose(blocks: Sequence[str], entry: str) -> str:
    """The last block that binds the entry point.

    A block that contains `def ENTRY` but does not parse counts as a broken answer: earlier drafts are not used instead.
    Raises Malformed.
    """
    for text in reversed(blocks):
        try:
            tree = ast.parse(text)
        except _NOT_PYTHON as exc:
            if re.search(rf"\b(def|class)\s+{re.escape(entry)}\b", text):
                raise Malformed(f"{type(exc).__name__}: {exc}") from None
            continue
        if tree.body and entry in _bound(tree.body):
            return text
    raise Malformed(f"no block defines {entry!r}")


def choose_program(blocks: Sequence[str], labelled: Sequence[bool]) -> str:
    """The last block that is a program: Python code that does something when it runs.

    A block without a Python label counts only if it imports, defines, or calls print, input or open: sample output can
    be valid Python by accident. Definitions alone are a program only if there is no other program.
    Raises Malformed.
    """
    definitions, accidents = [], []
    for text, says_python in zip(reversed(blocks), reversed(labelled), strict=True):
        try:
            body = ast.parse(text).body
        except _NOT_PYTHON:
            continue
        if not body:
            continue
        if not (says_python or _is_deliberate(body)):
            accidents.append(text)
        elif all(map(_is_inert, body)):
            definitions.append(text)
        else:
            return text
    for texts in (definitions, accidents):
        if texts:
            return texts[0]
    raise Malformed("no block is Python")


def _is_inert(node: ast.stmt) -> bool:
    """Whether the statement is a definition or a plain value: a module with only such statements prints nothing."""
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
        return not any(isinstance(inner, ast.Call) for inner in ast.walk(node))
    return isinstance(node, _DEFINITIONS)


def _is_deliberate(body: Sequence[ast.stmt]) -> bool:
    for node in ast.walk(ast.Module(list(body), [])):
        if isinstance(node, _DEFINITIONS):
            return True
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "input", "open"):
            return True
    return False


def with_helpers(text: str, blocks: Sequence[str]) -> ast.Module:
    """The chosen block, preceded by the statements of other blocks that bind the names it uses but does not bind.

    Imports or a helper may be in separate blocks. For each missing name, the last binding before the chosen block is
    used, or else the first one after it. Raises what ast.parse raises for the chosen block.
    """
    tree = ast.parse(text)
    missing = _unbound(tree.body)
    if not missing:
        return tree
    at = max(i for i, block in enumerate(blocks) if block == text)
    statements = [node for block in (*blocks[:at], *blocks[at + 1 :]) for node in _statements(block)]
    first_after = sum(len(_statements(block)) for block in blocks[:at])
    order = [*reversed(range(first_after)), *range(first_after, len(statements))]
    taken: set[int] = set()
    tried: set[str] = set()
    while names := missing - tried:
        name = min(names)
        tried.add(name)
        index = next((i for i in order if name in _bound([statements[i]])), None)
        if index is not None and index not in taken:
            taken.add(index)
            missing |= _unbound([statements[index]])
            tried |= set(_bound([statements[index]]))
    if missing - {name for i in taken for name in _bound([statements[i]])}:  # may come from `from math import *`
        taken |= {i for i, node in enumerate(statements) if _imports_all(node)}
    helpers = [statements[i] for i in sorted(taken)]
    future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    return ast.Module([*future, *helpers, *(n for n in tree.body if n not in future)], [])


def _statements(block: str) -> list[ast.stmt]:
    try:
        return ast.parse(block).body
    except _NOT_PYTHON:
        return []


def _imports_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and node.module != "__future__"


def _unbound(body: Sequence[ast.stmt]) -> set[str]:
    """Names that the statements read but do not bind, except builtins."""
    read: set[str] = set()
    bound = {*dir(builtins), "__name__", "__file__", "__doc__", *_bound(body)}
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
    return read - bound


def compiled(blocks: Sequence[str], choose_from: Callable[[Sequence[str]], str]) -> types.CodeType:
    """The chosen block, and what it needs from the other blocks, as code. Raises Malformed."""
    try:
        if len(blocks) == 1:
            return compile(blocks[0], "solution.py", "exec", dont_inherit=True)
        module = with_helpers(choose_from(blocks), blocks)
        return compile(module, "solution.py", "exec", dont_inherit=True)
    except _NOT_PYTHON as exc:
        raise Malformed(f"{type(exc).__name__}: {exc}") from None


def _bound(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that the statements bind at module level. An import counts only if it can succeed."""
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
    """Run the chosen block as a module and return its object `entry`. Raises Malformed, or what the code raises."""
    code = compiled(blocks, lambda several: choose(several, entry))
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(code, module.__dict__)
    if entry not in module.__dict__:
        raise Malformed(f"the code defines no {entry!r}")
    return module.__dict__[entry]


def _told(exc: BaseException) -> str:
    try:
        return f"{type(exc).__name__}: {exc}"[:300]
    except BaseException:  # the untrusted border: a candidate's own __str__
        return "an exception that cannot be shown"


def _load_or_tell(blocks: Sequence[str], entry: str, tell: Callable[[list[Any]], None]) -> Any:
    """Return the result of `load` and report ["ok", ""]; or report the failure and return None."""
    try:
        value = load(blocks, entry)
    except Malformed as exc:
        tell(["malformed", str(exc)[:300]])
    except BaseException as exc:  # the untrusted border: includes SystemExit and KeyboardInterrupt
        tell(["raised", _told(exc)])
    else:
        tell(["ok", ""])
        return value
    return None


def run_calls(channel: wire.Channel, blocks: Sequence[str], entry: str, calls: Sequence[Any]) -> None:
    """Report [["ok", ""], outcome per call]; outcome: [True, value], or [False, exception], which ends the list."""
    results: list[Any] = []
    function = _load_or_tell(blocks, entry, results.append)
    if results[0][0] == "ok":
        for args, kwargs in calls:
            try:
                results.append([True, wire.encode(function(*args, **kwargs), _opaque)])
            except BaseException as exc:  # the border
                results.append([False, _told(exc)])
                break
    channel.send(wire.dumps(results))


def _opaque(value: Any) -> dict[str, Any]:
    return {"h": type(value).__name__}


def serve(channel: wire.Channel, blocks: Sequence[str], entry: str, names: Sequence[str]) -> None:
    """Load the code, report the result, serve a judge. names: other names in both tests and prompt."""
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


def run_program(channel: wire.Channel, blocks: Sequence[str], labelled: Sequence[bool], stdin: str) -> int:
    """Run the last block that is a program as `__main__`, with its output on the channel. Returns the exit status.

    labelled: whether each block is labelled as Python.

    The first byte sent is P if there is a program, else M.
    """
    try:
        code = compiled(blocks, lambda several: choose_program(several, labelled))
    except Malformed as exc:
        channel.write(b"M" + str(exc)[:300].encode("utf-8", "replace"))
        return 0
    channel.write(b"P")
    _connect_standard_streams(stdin.encode("utf-8", "surrogatepass"), channel.descriptor)
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = ["solution.py"]
    stdout = sys.stdout  # the program may replace it, and text buffered in this one is still output
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
    except BaseException:  # the untrusted border: an uncaught exception is exit status 1, as for any script
        return 1
    return 0


def _finish(stdout: TextIO) -> None:
    """Do what an interpreter does at exit: wait for threads, run atexit functions, flush."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, stdout):
        if not stream.closed:
            stream.flush()
