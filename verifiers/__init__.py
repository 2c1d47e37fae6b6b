"""Verifiers: text and a task in, a verdict out. No torch, no model.

A verifier is one module; the file's name is its registration. It defines

    class Task(TypedDict): ...           the fields a task row must have (NotRequired for the others)
    def verify(completion, task) -> Verdict
    EXAMPLES = (Example(...), ...)       right, wrong, malformed and hostile completions, checked by the conformance kit

and may define
    verify_batch(completions, tasks) -> list[Verdict]    if one call for many is cheaper
    generate(n, seed) -> Iterator[row]                   if tasks can be generated: rows of prompt, completion, task
    mutate(example, rng) -> Iterator[Example]            right rewordings and near misses of a right example
    unavailable() -> str | None                          why it cannot run here and how to fix it; it may take what is
                                                         known of the tasks, where that decides it
    gold_fault(task) -> str | None                       why no answer can ever pass this task: an unusable gold
    DEADLINE_S = 1.0                                     the longest one verdict may take
    WHOLE_TEXT = True                                    no final answer is read: the text as a whole is judged
    class Environment                                    for answers of several turns, with
        reset(task) -> prompt                                the first thing the model reads
        step(action) -> (observation, reward, done)          what it reads next, and the reward of its answer
A user's own directory of such files is passed to `load`, or named by an installed package under the entry point group
`whetstone.verifiers` (value: the package that holds the files). It shadows nothing: a name that is defined twice is
refused.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import random
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from verifiers import _mixed_install
from verifiers._secrets import hidden
from verifiers._user_files import import_user_file, named_file
from verifiers.deadline import DeadlinePool

Status = Literal["pass", "fail", "malformed", "error"]
PACKAGE_DIR = Path(__file__).parent
ENTRY_POINTS = "whetstone.verifiers"

if _fault := _mixed_install.fault(PACKAGE_DIR):
    raise ImportError(_fault)
THINKING_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
ANSWER_TAGS = ("<answer>", "</answer>")
HANGS_S = 30.0  # a quick verifier that takes longer hangs; its first call may import a library
QUICK_S = 1.0  # a verifier with a longer deadline runs code or calls a model: never done just to look at a gold


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one completion.

    status: `pass` and `fail` judge the answer; `malformed` means no answer could be read (scored, counted apart);
        `error` means the checker broke: no score, the sample is masked, never trained as a wrong answer.
    score: in [0, 1]; None exactly when status is `error`.
    """

    status: Status
    score: float | None
    detail: str = ""

    def __post_init__(self) -> None:
        if self.status not in typing.get_args(Status):
            raise ValueError(f"verdict status {self.status!r}; have: {', '.join(typing.get_args(Status))}")
        if (self.score is None) != (self.status == "error"):
            raise ValueError(f"a verdict has no score exactly when its status is error: {self.status}, {self.score}")
        if self.score is not None and not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"verdict score {self.score!r} is not in [0, 1]")


def passed(detail: str = "", score: float = 1.0) -> Verdict:
    return Verdict("pass", score, detail)


def failed(detail: str = "", score: float = 0.0) -> Verdict:
    return Verdict("fail", score, detail)


def malformed(detail: str = "", score: float = 0.0) -> Verdict:
    return Verdict("malformed", score, detail)


def after_thinking(completion: str) -> str:
    """The part of a completion that is graded: what follows the thinking; empty if the thinking never ended.

    The opening tag may stand in the prompt, where chat templates of reasoning models put it. Whoever calls a verifier
    uses `with_opened_thinking`, so that thinking that was cut off is recognized.
    """
    answer = completion
    for opening, closing in THINKING_TAGS:
        answer = answer.rpartition(closing)[2]
        if opening in answer:
            return ""
    return answer


def opened_thinking(prompt: Any) -> str:
    """The thinking tag that a prompt ends in, with the white space after it; empty if it ends in none.

    prompt: the rendered text (its end is enough), or messages, of which an assistant's last one is read. Only the very
    end counts: instructions such as `think inside <think> tags` open nothing.
    """
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content") if prompt[-1].get("role") == "assistant" else None
    if not isinstance(prompt, str):
        return ""
    end = prompt.rstrip()
    return next((opening + prompt[len(end) :] for opening, _ in THINKING_TAGS if end.endswith(opening)), "")


def with_opened_thinking(completion: str, prompt: Any) -> str:
    """The completion after the thinking tag that its prompt leaves open, unless the tag is there already.

    A completion that is no text is returned as it is: its row alone is reported as broken.
    """
    opened = opened_thinking(prompt)
    return (
        completion if not isinstance(completion, str) or completion.startswith(opened.rstrip()) else opened + completion
    )


def broken(detail: str) -> Verdict:
    """The checker itself failed on this row. Keys in an exception's message are hidden."""
    return Verdict("error", None, hidden(detail))


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a verifier's own evidence. kind is `right`, `wrong`, `malformed` or `hostile`."""

    kind: Literal["right", "wrong", "malformed", "hostile"]
    completion: str
    task: Mapping[str, Any]
    score: float | None = None  # the exact score, if the verifier gives more than 0 and 1


@dataclass(frozen=True, slots=True)
class Verifier:
    """A loaded verifier module."""

    name: str
    module: ModuleType

    @property
    def required_fields(self) -> frozenset[str]:
        return _required_fields(self.module.Task)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(typing.get_type_hints(self.module.Task))

    @property
    def mutate(self) -> Callable[[Example, random.Random], Iterator[Example]] | None:
        return getattr(self.module, "mutate", None)

    @property
    def deadline_s(self) -> float:
        return float(getattr(self.module, "DEADLINE_S", 1.0))

    def unavailable(self, task: Mapping[str, Any] | None = None) -> str | None:
        """Why this verifier cannot run here and how to fix it; None if it can. task: what is known of the tasks."""
        reason = getattr(self.module, "unavailable", None)
        if reason is None:
            return None
        return reason(task or {}) if inspect.signature(reason).parameters else reason()

    @property
    def grades_batches(self) -> bool:
        """Whether one call for many rows is cheaper than one call per row."""
        return hasattr(self.module, "verify_batch")

    @property
    def examples(self) -> tuple[Example, ...]:
        return tuple(self.module.EXAMPLES)

    @property
    def generate(self) -> Callable[[int, int], Iterator[dict[str, Any]]] | None:
        return getattr(self.module, "generate", None)

    def missing_fields(self, task: Mapping[str, Any]) -> list[str]:
        return sorted(self.required_fields - task.keys())

    def gold_fault(self, task: Mapping[str, Any]) -> str | None:
        """Why no completion can ever pass this task; None if one can, as far as can be checked without an answer.

        Uses the module's `gold_fault`; a fast verifier without one is asked to grade an empty completion, which raises
        for a broken task. It may hang: `GoldCheck` gives it a deadline.
        """
        if missing := self.missing_fields(task):
            return f"the task has no field {missing[0]!r}"
        check = getattr(self.module, "gold_fault", None)
        if check is not None:
            try:
                return check(task)
            except (Exception, SystemExit) as exc:  # the untrusted border: a broken gold is a fault in any case
                return hidden(str(exc) if isinstance(exc, ValueError) else f"{type(exc).__name__}: {exc}")
        if self.deadline_s > QUICK_S or self.unavailable(task):
            return None
        verdict = self._grade_one("", task)
        return verdict.detail.removeprefix(f"{self.name} raised ValueError: ") if verdict.status == "error" else None

    def grade(self, completions: Sequence[str], tasks: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """One verdict per row, in order. A row that makes the verifier raise is `error` and affects no other row."""
        completions = [with_opened_thinking(c, t.get("prompt")) for c, t in zip(completions, tasks, strict=True)]
        if self.grades_batches and not any(self.missing_fields(task) for task in tasks):
            try:
                verdicts = list(self.module.verify_batch(completions, tasks))
                if len(verdicts) == len(completions) and all(isinstance(v, Verdict) for v in verdicts):
                    return verdicts
            except (Exception, SystemExit):  # the untrusted border: grade one by one, so a bad row affects no other
                pass
        return [self._grade_one(c, t) for c, t in zip(completions, tasks, strict=True)]

    def _grade_one(self, completion: str, task: Mapping[str, Any]) -> Verdict:
        missing = self.missing_fields(task)
        if missing:
            return broken(f"{self.name}: the task has no field {missing[0]!r}")
        try:
            if hasattr(self.module, "verify"):
                verdict = self.module.verify(completion, task)
            else:
                (verdict,) = self.module.verify_batch([completion], [task])
        except (Exception, SystemExit) as exc:  # the untrusted border: a verifier's exception never becomes a reward
            return broken(f"{self.name} raised {type(exc).__name__}: {exc}")
        if not isinstance(verdict, Verdict):
            return broken(f"{self.name} returned {type(verdict).__name__}, not a Verdict")
        return verdict


@lru_cache(maxsize=1024)
def _required_fields(task: Any) -> frozenset[str]:
    # not Task.__required_keys__: under `from __future__ import annotations` it counts NotRequired fields too
    hints = typing.get_type_hints(task, include_extras=True)
    optional = {name for name, hint in hints.items() if typing.get_origin(hint) is typing.NotRequired}
    return frozenset(hints) - optional if task.__total__ else frozenset()


def _files(directory: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(directory.glob("*.py")) if not p.stem.startswith("_")}


def _is_verifier(path: Path) -> bool:
    return _defines_verify(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _defines_verify(path: Path, _changed_ns: int) -> bool:
    return re.search(r"^def verify(_batch)?\s*\(", path.read_text("utf-8", "replace"), re.MULTILINE) is not None


def _built_in() -> dict[str, Path]:
    return _verifiers_of_package(PACKAGE_DIR.stat().st_mtime_ns)  # it changes when a file is added or removed


@lru_cache(maxsize=1)
def _verifiers_of_package(_changed_ns: int) -> dict[str, Path]:
    return {name: p for name, p in _files(PACKAGE_DIR).items() if _is_verifier(p)}


@lru_cache(maxsize=1)
def _installed_directories() -> list[Path]:
    """The packages that installed distributions name under our entry point group."""
    specs = [importlib.util.find_spec(point.value) for point in importlib.metadata.entry_points(group=ENTRY_POINTS)]
    return [
        Path(directory) for spec in specs if spec is not None for directory in spec.submodule_search_locations or ()
    ]


def available(directories: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Name -> file of every verifier: built in, of installed packages and in the user's directories.

    Raises ValueError if a directory is missing or two files define one name.
    """
    files = dict(_built_in())
    for directory in [*_installed_directories(), *map(Path, directories)]:
        if not directory.is_dir():
            what = "is a file; name its directory" if directory.is_file() else "does not exist"
            raise ValueError(f"verifier directory {directory} {what}")
        for name, path in _files(directory).items():
            if not _is_verifier(path):
                continue
            if name in files and files[name].resolve() != path.resolve():
                raise ValueError(f"verifier {name!r} is defined twice: {files[name]} and {path}; rename one file")
            files[name] = path
    return files


def load(name: str, directories: Sequence[str | Path] = ()) -> Verifier:
    """The verifier called `name`. Raises ValueError with the known names if there is no such verifier."""
    path = named_file(
        "verifier", name, available(directories), directories, "function verify(completion, task) (not async)"
    )
    ours = path.parent.resolve() == PACKAGE_DIR.resolve()
    module = importlib.import_module(f"verifiers.{name}") if ours else import_user_file(f"user_verifiers.{name}", path)
    for part in ("Task", "EXAMPLES"):
        if not hasattr(module, part):
            raise ValueError(f"{path}: a verifier defines {part}; see `make verifier NAME=...`")
    return Verifier(name, module)


class GoldCheck:
    """`gold_fault` with a deadline per gold: `with GoldCheck() as check`."""

    def __init__(self) -> None:
        self._pool = DeadlinePool(1)

    def __enter__(self) -> GoldCheck:
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.close()

    def fault(self, verifier: Verifier, task: Mapping[str, Any]) -> str | None:
        """See `Verifier.gold_fault`. Raises ValueError if the verifier does not return."""
        try:
            return self._pool.call(lambda: verifier.gold_fault(task), HANGS_S)
        except TimeoutError:
            raise ValueError(f"verifier {verifier.name!r} gave no verdict within {HANGS_S:g} s; it hangs") from None


def gold_faults(
    name: str, tasks: Sequence[Mapping[str, Any]], directories: Sequence[str | Path] = ()
) -> list[tuple[int, str]]:
    """(index into tasks, reason) of every task that no completion can ever pass: null golds, golds outside the grammar.

    Such a row is graded `error` and masked during training, so it is better found before: `plan` calls this on a
    sample, `python -m verifiers golds FILE` on a whole file. Raises ValueError for a verifier that is unknown or hangs.
    """
    verifier = load(name, directories)
    with GoldCheck() as check:
        faults = [(index, check.fault(verifier, task)) for index, task in enumerate(tasks)]
    return [(index, fault) for index, fault in faults if fault is not None]
