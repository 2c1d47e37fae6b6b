"""`python -m pipeline WORDS` in a child that is forked from a process which has imported torch, TRL and vLLM once.

The imports take longer than most runs of a few steps do. A child has everything else of its own: its memory, its
generators, its exit code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli.chaos import Server


@dataclass(frozen=True, slots=True)
class Done:
    """returncode: as subprocess gives it. stdout: what the child wrote to stdout and stderr, in order."""

    returncode: int
    stdout: str


class Forked:
    """One server for all tests of a process; it starts with the first run."""

    def __init__(self, directory: Path) -> None:
        self.server = Server(directory / "log", (sys.executable, "-m", "pipeline.cli.chaos", "auto"))

    def __call__(self, *words: str) -> Done:
        log = self.server.log
        before = log.stat().st_size if log.is_file() else 0
        code, _ = self.server.run(words)
        with log.open("rb") as text:
            text.seek(before)
            return Done(code, text.read().decode(errors="replace"))

    def close(self) -> None:
        self.server.close()
