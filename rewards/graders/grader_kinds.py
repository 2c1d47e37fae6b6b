"""The YAML's fields of each grader kind -> GraderPart, and what a plan asks of them.

rewards:
  openai_grader: {file: grader.json}
  accuracy: {kind: trl_reward, file: my_rewards.py, function: accuracy_reward}
  verl_score: {file: reward_score.py}
  open_instruct: {file: my_verifier.py, fields: {ground_truth: answer}}
  prime_rubric: {environment: {python: prime/bin/python, taskset: my_env}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.graders import openai_graders
from rewards.graders.grader_part import Grader, GraderPart
from rewards.graders.hosted import HostedGrader
from rewards.graders.prime_rubric import prime_rubric
from verifiers.tools._prime import environment_files

GRADER_KINDS = ("openai_grader", "trl_reward", "verl_score", "open_instruct", "prime_rubric")
ENTRY = {"trl_reward": "", "verl_score": "compute_score", "open_instruct": ""}  # default name in the file
MAX_FILE_BYTES = 4 << 20


@dataclass(slots=True)
class GraderFields:
    """Fields of a grader part, beside its name. A field that a kind does not read is refused."""

    weight: float = 1.0
    file: str = ""
    grader: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    function: str = ""
    isolation: str = "sandbox"
    timeout_s: float = 30.0
    pass_at: float | None = None
    task: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    conversational: bool = False
    url: str = ""
    model: str = ""


ONLY = {"grader": ("openai_grader",), "url": ("openai_grader",), "model": ("openai_grader",),
        "function": ("trl_reward", "verl_score", "open_instruct"), "options": ("verl_score",),
        "conversational": ("trl_reward",), "environment": ("prime_rubric",)}  # fmt: skip


def grader_part(name: str, kind: str, fields: GraderFields, directories: Sequence[str | Path]) -> GraderPart:
    """directories: where a file that does not exist as named is looked for. Raises ValueError naming key and fix."""
    where = f"rewards.{name}"
    for key, kinds in ONLY.items():
        if kind not in kinds and getattr(fields, key) != getattr(GraderFields(), key):
            raise ValueError(f"{where}.{key}: only for kind {' or '.join(kinds)}, not {kind}")
    if not fields.timeout_s > 0:
        raise ValueError(f"{where}.timeout_s: {fields.timeout_s!r} must be above 0")
    grader: Grader
    if kind == "openai_grader":
        read = openai_grader(where, fields, directories)
        grader, pass_at = read, read.pass_at
    elif kind == "prime_rubric":
        if fields.file or fields.isolation != "sandbox":
            raise ValueError(f"{where}: takes an environment, neither a file nor an isolation")
        grader, pass_at = prime_rubric(where, fields.environment, fields.timeout_s), 1.0
    else:
        grader, pass_at = _python_file(where, kind, fields, directories), 1.0
    reason = grader.unavailable()
    if reason:
        raise ValueError(f"{where}: cannot run here: {' '.join(reason.split())}")
    pass_at = pass_at if fields.pass_at is None else fields.pass_at
    deadline_s = 2 * (2 * fields.timeout_s + 3)  # the sandbox may try twice, and wall time may be twice its CPU time
    return GraderPart(name, fields.weight, grader, pass_at, deadline_s, fields.task, fields.fields)


def openai_grader(where: str, fields: GraderFields, directories: Sequence[str | Path]) -> openai_graders.OpenAIGrader:
    if bool(fields.file) == (fields.grader is not None):
        raise ValueError(f"{where}: give either file, a JSON file, or grader, the object itself")
    spec: Any = fields.grader
    if spec is None:
        path = find_file(f"{where}.file", fields.file, directories)
        try:
            spec = json.loads(_text(f"{where}.file", path))
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"{where}.file: {path} is not JSON: {exc}") from None
        if isinstance(spec, Mapping) and isinstance(spec.get("grader"), Mapping):
            spec = spec["grader"]  # the body of a fine-tuning job
    options = openai_graders.HostOptions(fields.isolation, fields.timeout_s, fields.url, fields.model)
    return openai_graders.read(
        spec, f"{where}.grader" if fields.grader is not None else f"{where}: {fields.file}", options
    )


def _python_file(where: str, kind: str, fields: GraderFields, directories: Sequence[str | Path]) -> HostedGrader:
    if not fields.file:
        raise ValueError(f"{where}: needs 'file', the Python file with the grader")
    path = find_file(f"{where}.file", fields.file, directories)
    entry = fields.function or ENTRY[kind]
    if kind == "trl_reward" and not entry:
        raise ValueError(f"{where}: needs 'function', the name of the reward function in {path.name}")
    try:
        return HostedGrader(kind, _text(f"{where}.file", path), str(path), entry, fields.isolation, fields.timeout_s,
                            fields.options, fields.conversational)  # fmt: skip
    except ValueError as exc:
        raise ValueError(f"{where}: {exc}") from None


def find_file(where: str, file: str, directories: Sequence[str | Path]) -> Path:
    """The file as named, or in one of the directories. Raises ValueError."""
    tried = [Path(file).expanduser(), *(Path(directory) / file for directory in directories)]
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        raise ValueError(f"{where}: {file} does not exist" + (f", nor in {', '.join(map(str, directories))}"
                                                              if directories else ""))  # fmt: skip
    return path


def _text(where: str, path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{where}: {path} is larger than {MAX_FILE_BYTES >> 20} MiB; a grader is one small file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{where}: {path} cannot be read: {exc}") from None


def columns_needed(name: str, fields: Mapping[str, Any], directories: Sequence[str | Path] = ()) -> frozenset[str]:
    """Fields that every row must have for this part: what the templates of an OpenAI grader read. Empty for the other
    kinds, and for a grader that cannot be read, which is reported where it is built."""
    own = {key: fields[key] for key in ("file", "grader") if key in fields}
    if fields.get("kind", name) != "openai_grader":
        return frozenset()
    try:
        read = openai_grader(f"rewards.{name}", GraderFields(**own), directories)
    except (ValueError, TypeError):
        return frozenset()
    return read.items - {*(fields.get("task") or {}), *(fields.get("fields") or {})}


def files_of(name: str, fields: Mapping[str, Any], directories: Sequence[str | Path] = ()) -> list[Path]:
    """The files that a grader part reads, which a stage's result depends on."""
    kind = fields.get("kind", name)
    if kind == "prime_rubric" and isinstance(fields.get("environment"), Mapping):
        return environment_files(fields["environment"])
    if kind not in GRADER_KINDS or not fields.get("file"):
        return []
    try:
        return [find_file("", str(fields["file"]), directories)]
    except ValueError:  # reported where the part is built
        return []


__all__ = ["GRADER_KINDS", "GraderFields", "columns_needed", "files_of", "grader_part", "openai_grader"]
