"""whetstone check --grader FILE: hold a grader of another tool against the conformance kit; or NAME: a verifier.

The kind follows from the file: .json is OpenAI's; a .py file with compute_score is verl's, one with a subclass of
VerifierFunction is open-instruct's, any other function is TRL's. With python=INTERPRETER, the grader is the name of a
Prime environment instead of a file, with dir=FOLDER where it is not installed.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rewards
import verifiers
from pipeline.config.load import ConfigError
from rewards.graders import GraderPart, grader_check
from verifiers import kit

KEYS = ("kind", "function", "isolation", "timeout_s", "examples", "pass_at", "url", "model", "dir", "python")


def check(words: Sequence[str]) -> int:
    """Print the kit's table and the faults. Returns 0 if all conform, else 2. Raises ConfigError."""
    files, names, settings = parsed(words)
    try:
        directories = [] if "python" in settings or "dir" not in settings else [settings.pop("dir")]
        if not files:
            return kit.check_all(names or sorted(verifiers.available(directories)), directories)
        examples = settings.pop("examples", None)
        parts = [part_of(Path(file), dict(settings)) for file in files]
        loaded = [as_loaded(part, Path(examples) if examples else None) for part in parts]
    except ValueError as exc:
        raise ConfigError([f"check: {exc}"]) from exc
    return kit.show([kit.check(verifier) for verifier in loaded])


def parsed(words: Sequence[str]) -> tuple[list[str], list[str], dict[str, str]]:
    """(files of graders, names of verifiers, key=value words). Raises ConfigError."""
    files, names, settings = list[str](), list[str](), dict[str, str]()
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.partition("=")
        if word == "--grader" and waiting:
            files.append(waiting.pop(0))
        elif key in ("--grader", "grader") and value:
            files.append(value)
        elif word == "--grader":
            raise ConfigError(["check: --grader needs a file, as in: whetstone check --grader grader.json"])
        elif equals and key in KEYS:
            settings[key] = value
        elif equals:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError([f"check: unknown key {key!r}{hint}; have: {', '.join(KEYS)}"])
        else:
            names.append(word)
    return files, names, settings


def part_of(file: Path, settings: dict[str, Any]) -> GraderPart:
    """The grader in a file, or of a Prime environment, as a reward part. Raises ValueError."""
    if "python" in settings:
        environment = {"python": settings.pop("python"), "taskset": str(file),
                       "dirs": [settings.pop("dir")] if "dir" in settings else []}  # fmt: skip
        return _graded_by({file.name: {"kind": "prime_rubric", "environment": environment, **settings}})
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    kind, entry = settings.pop("kind", None), settings.get("function")
    if kind is None:
        kind, function = ("openai_grader", None) if file.suffix == ".json" else kind_of(file)
        if entry is None and function is not None:
            settings["function"] = function
    return _graded_by({file.stem: {"kind": kind, "file": str(file), **settings}})


def _graded_by(block: dict[str, dict[str, Any]]) -> GraderPart:
    (part,) = rewards.build(block).parts
    if not isinstance(part, GraderPart):
        raise ValueError(f"kind={block[next(iter(block))]['kind']} is no grader")
    return part


def kind_of(file: Path) -> tuple[str, str | None]:
    """(kind, name of the function) of a Python file, from its syntax alone. Raises ValueError."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError, OSError) as exc:
        raise ValueError(f"{file} is not Python: {exc}") from None
    functions = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name[0] != "_"]
    bases = [ast.unparse(base) for n in body if isinstance(n, ast.ClassDef) for base in n.bases]
    if "compute_score" in functions:
        return "verl_score", "compute_score"
    if any(base.endswith("VerifierFunction") for base in bases):
        return "open_instruct", None
    taking = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and _takes_completions(n)]
    if len(taking) == 1:
        return "trl_reward", taking[0]
    raise ValueError(f"{file}: {'several reward functions' if taking else 'no grader that is recognised'}; say which, "
                     "as kind=trl_reward function=NAME")  # fmt: skip


def _takes_completions(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(argument.arg == "completions" for argument in (*node.args.args, *node.args.kwonlyargs))


def as_loaded(part: GraderPart, examples: Path | None) -> verifiers.Verifier:
    rows = grader_check.read_examples(examples) if examples else grader_check.guessed_examples(part)
    return grader_check.as_verifier(part, rows)


__all__ = ["check"]
