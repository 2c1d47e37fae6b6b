"""The command that installs a missing package into the environment that runs, with the versions it was tested with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install_command(package: str) -> str:
    """Such as `.venv/bin/pip install -c requirements/cpu.txt wandb`. `make install` notes which constraints hold."""
    pip = Path(sys.prefix) / "bin" / "pip"
    program = _short(pip) if pip.is_file() else f"{_short(Path(sys.executable))} -m pip"
    try:
        lock = ROOT / json.loads((Path(sys.prefix) / "installed.json").read_text(encoding="utf-8"))["lock"]
    except (OSError, ValueError, KeyError, TypeError):
        lock = None
    constraints = f"-c {_short(lock)} " if lock is not None and lock.is_file() else ""
    return f"{program} install {constraints}{package}"


def _short(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    absolute = Path(os.path.abspath(path))  # a link stays as it is: a virtual environment is one
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


__all__ = ["install_command"]
