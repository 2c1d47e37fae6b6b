"""Lookup and import of the one file in which a user defines a verifier, a tool or a reward function."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


def import_user_file(qualified: str, path: Path) -> ModuleType:
    """The module in the file, under a name of ours, loaded again if the file has changed. Raises what the file raises.

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
    except BaseException:
        del sys.modules[qualified]
        raise
    return module


def named_file(kind: str, name: str, found: Mapping[str, Path]) -> Path:
    """The file of this name. Raises ValueError with the nearest known name and all of them."""
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no {kind} {name!r}{hint}; have: {', '.join(sorted(found))}")
    return found[name]
