"""Import of a package without torch's compiler: what it compiles at import is compiled at its first call.

peft and TRL import bitsandbytes wherever it is installed, and bitsandbytes decorates functions with `torch.compile`,
which imports torch._inductor: seconds in each process that fine-tunes, though only quantized weights call them.
"""

from __future__ import annotations

import functools
import importlib.abc
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any


def compile_late(package: str) -> None:
    """Import `package` this way when something imports it; nothing is done if it has been imported."""
    if package not in sys.modules and not any(isinstance(f, _Finder) and f.package == package for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(package))


def at_first_call(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile`, except that a plain function is compiled when it is first called."""

    def compile_later(model: Any = None, **options: Any) -> Any:
        import torch

        if model is None:  # used as @torch.compile(...)
            return lambda function: compile_later(function, **options)
        if isinstance(model, torch.nn.Module):
            return compile_now(model, **options)
        compiled = functools.cache(lambda: compile_now(model, **options))

        @functools.wraps(model)
        def run(*values: Any, **named: Any) -> Any:
            return compiled()(*values, **named)

        return run

    return compile_later


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the package as the other finders do, and changes how it is executed; gone once it has been."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.package:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = partial(self._execute, spec.loader.exec_module)
            spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[Any], None], module: Any) -> None:
        import torch

        if self in sys.meta_path:
            sys.meta_path.remove(self)
        compile_now = torch.compile
        torch.compile = at_first_call(compile_now)  # type: ignore[assignment]
        try:
            execute(module)
        finally:
            torch.compile = compile_now


__all__ = ["at_first_call", "compile_late"]
