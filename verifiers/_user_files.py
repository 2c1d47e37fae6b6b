"""Lookup and import of the one file in which a user defines a verifier, a tool or a reward function."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType


def import_user_file(qualified: str, path: Path) -> ModuleType:
    """The module in the file, under a name of ours, loaded again if the file has changed. Raises ValueError with file
    and line for whatever the file raises.

    It may import other files of its directory, which comes last on the path: it hides no installed module.
    """
    known, changed = sys.modules.get(qualified), path.stat().st_mtime_ns
    if known is not None and (known.__file__, known.__dict__.get("changed_ns")) == (str(path), changed):
        return known
    spec = importlib.util.spec_from_file_location(qualified, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["changed_ns"] = changed
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    sys.modules[qualified] = module  # before it runs: its annotations are looked up here
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        del sys.modules[qualified]
        if isinstance(exc, KeyboardInterrupt):
            raise
        raise ValueError(f"{_place(exc, path)}: {type(exc).__name__}: {_said(exc)}") from exc
    return module


def _place(exc: BaseException, path: Path) -> str:
    """The line of the file that raised; for a file that it imports and that cannot be parsed, the line there."""
    ours = str(path.absolute())
    if isinstance(exc, SyntaxError) and exc.filename:
        return f"{path if exc.filename == ours else exc.filename}:{exc.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == ours]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _said(exc: BaseException) -> str:
    text = exc.msg if isinstance(exc, SyntaxError) else str(exc)  # str of a SyntaxError repeats file and line
    return " ".join(text.split())


def named_file(
    kind: str, name: str, found: Mapping[str, Path], directories: Sequence[str | Path], defines: str
) -> Path:
    """The file of this name. Raises ValueError with the nearest known name and all of them, or, for a file of that name
    in `directories`, with what it lacks."""
    if name not in found:
        for path in (Path(directory) / f"{name}.py" for directory in directories):
            if path.is_file():
                raise ValueError(f"{path}: no {kind}, because it defines no {defines}")
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no {kind} {name!r}{hint}; have: {', '.join(sorted(found))}")
    return found[name]
