"""What the sandbox's tests share: an isolation to run under, and rows in short."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from verifiers import Verdict, python_tests, sandbox
from verifiers.sandbox import pool


def isolated(*, shell: bool = False) -> str | None:
    """None where tests can run, under the Landlock fallback if need be, else why they cannot.

    Whether the refusal itself is right is tested everywhere.
    """
    problem = sandbox.unavailable(shell=shell)
    if problem and not shell and sandbox.CHOICE not in os.environ:
        os.environ[sandbox.CHOICE] = "landlock"
        problem = sandbox.unavailable()
    return problem


needs_sandbox = pytest.mark.skipif(bool(isolated()), reason=str(isolated()))
needs_shell = pytest.mark.skipif(bool(isolated(shell=True)), reason=str(isolated(shell=True)))


def namespaces() -> bool:
    """Whether what only bubblewrap gives can be asked for."""
    return isolated() is None and pool.isolation().kind == "bwrap"


def run(code: str, tests: str | Sequence[str], *, entry: str = "f", prompt: str = "", **fields: Any) -> Verdict:
    """The verdict of python_tests on bare code."""
    listed = [tests] if isinstance(tests, str) else list(tests)
    task = cast(python_tests.Task, {"prompt": prompt, "entry_point": entry, "tests": listed, **fields})
    return python_tests.verify(code, task)


def says(body: str, *, limits: dict[str, Any] | None = None) -> str:
    """What `body`, the body of a function run in the sandbox, returns, as text."""
    code = "def f():\n" + "\n".join("    " + line for line in body.strip("\n").split("\n"))
    verdict = run(code, "said = f()\nassert False, said", **(limits or {}))
    assert verdict.status == "fail", verdict
    _, marker, said = verdict.detail.partition("does not hold")
    return said.removeprefix(": ") if marker else verdict.detail


CORPORA = Path(__file__).parent / "corpora"


@dataclass(frozen=True, slots=True)
class Honest:
    """A right answer and the tests it passes."""

    name: str
    entry: str
    prompt: str
    code: str
    tests: tuple[str, ...]


def honest_python() -> list[Honest]:
    """Rows of `entry:`, `prompt:`, then `--- code` and one `--- test` after the other."""
    rows = []
    for name, text in _entries("python_honest.txt"):
        head, *sections = text.split("--- ")
        fields = dict(line.split(": ", 1) for line in head.strip().split("\n"))
        code, *tests = (section.partition("\n")[2] for section in sections)
        rows.append(Honest(name, fields["entry"], fields.get("prompt", ""), code, tuple(tests)))
    return rows


def hostile_python() -> dict[str, str]:
    """What it does -> the code."""
    signs = {"{nul}": "\0", "{surrogate}": "\ud800", "{zero width}": "\u200b", "{cyrillic a}": "\u0430"}
    found = {}
    for name, text in _entries("python_hostile.txt"):
        for sign, character in signs.items():
            text = text.replace(sign, character)
        found[name] = text
    return found


def greedy_python() -> dict[str, str]:
    """What it uses up -> the code."""
    return dict(_entries("python_greedy.txt"))


def _entries(file: str) -> Iterator[tuple[str, str]]:
    for entry in (CORPORA / file).read_text(encoding="utf-8").split("\n=== ")[1:]:
        name, _, text = entry.partition("\n")
        yield name, text.rstrip("\n") + "\n"


def shell_scripts() -> list[tuple[str, str, str]]:
    """(expected status, what it does, the script)."""
    return [(*name.split(": ", 1), text) for name, text in _entries("shell.txt")]  # type: ignore[misc]
