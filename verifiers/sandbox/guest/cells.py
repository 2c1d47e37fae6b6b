"""Run the calls of an interpreter session: the earlier ones again, without their output, and then the last one.

Nothing stays alive between calls: what an earlier call defined exists because it runs again. Nothing in this process is
trusted: the code may overwrite all of this module.
"""

from __future__ import annotations

import ast
import builtins
import io
import sys
import types
from collections.abc import Sequence
from typing import Any

from . import wire


class Output(io.TextIOBase):
    """Standard output and standard error of one call: the first `keep` characters; counts what is dropped."""

    def __init__(self, keep: int) -> None:
        self.parts: list[str] = []
        self.left = keep
        self.dropped = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        kept = text[: self.left]
        self.left -= len(kept)
        self.dropped += len(text) - len(kept)
        if kept:
            self.parts.append(kept)
        return len(text)


def run_cells(channel: wire.Channel, earlier: Sequence[str], last: str, keep: int) -> None:
    """Report [whether the last call raised nothing, its output, number of characters dropped]."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.stdin = io.StringIO("")
    for number, code in enumerate(earlier, 1):
        _run(code, f"call {number}", module.__dict__, Output(0))
    out = Output(keep)
    fine = _run(last, f"call {len(earlier) + 1}", module.__dict__, out)
    channel.send(wire.dumps([fine, "".join(out.parts), out.dropped]))


def _run(code: str, name: str, scope: dict[str, Any], out: Output) -> bool:
    """Run one call as an interactive interpreter does: the value of a last line that is an expression is shown."""
    sys.stdout = sys.stderr = out
    try:
        tree = ast.parse(code, name)
        final = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), scope)
        if isinstance(final, ast.Expr):
            value = eval(compile(ast.Expression(final.value), name, "eval", dont_inherit=True), scope)
            if value is not None:
                out.write(repr(value) + "\n")
    except BaseException as exc:  # the untrusted border: includes SystemExit and KeyboardInterrupt
        out.write(_described(exc, name) + "\n")
        return False
    return True


def _described(exc: BaseException, name: str) -> str:
    """The exception and its line in this call's code."""
    line = exc.lineno if isinstance(exc, SyntaxError) else None
    trace = exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    location = f" (line {line})" if line else ""
    try:
        what = exc.msg if isinstance(exc, SyntaxError) else str(exc)
        return f"{type(exc).__name__}: {what}{location}" if what else f"{type(exc).__name__}{location}"
    except BaseException:  # the untrusted border: the code's own __str__
        return f"{type(exc).__name__}{location}"
