"""Calls a grader written for another tool. Runs in the sandbox as a script, or in a process of its own.

Standard library only, and nothing of ours: the sandbox gets this file's text. The request holds the grader's source,
so the reply is as trustworthy as the grader; the completions are data and reach no interpreter.

request: {"style", "source", "file", "entry", "rows": [...], "options": {...}}
reply:   {"grades": [[value or null, detail], ...]} or {"raised": "why the whole call failed"}
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

Grades = list[list[Any]]
_loaded: dict[tuple[str, str], Any] = {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    try:
        target = grader_of(request)
        return {"grades": STYLES[request["style"]](target, request["rows"], request["options"])}
    except Exception as exc:  # the border: the grader is other people's code
        return {"raised": shown(exc)}


def shown(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:300]


def prepare(request: dict[str, Any]) -> None:
    """Load the grader once, before a process forks for each request. What it raises is raised again by `answer`."""
    try:
        grader_of(request)
    except Exception:
        return


def grader_of(request: dict[str, Any]) -> Any:
    """The object that `entry` names in the grader's source; for open-instruct, an instance of its class."""
    key = (request["source"], request["entry"])
    if key not in _loaded:
        module = types.ModuleType("grader")
        module.__file__ = request["file"]
        sys.modules["grader"] = module
        if request["style"] == "open_instruct":
            provide_open_instruct()
        exec(compile(request["source"], request["file"], "exec", dont_inherit=True), module.__dict__)
        _loaded[key] = named(module, request["entry"], request["style"])
    return _loaded[key]


def named(module: types.ModuleType, entry: str, style: str) -> Any:
    found = getattr(module, entry, None) if entry else None
    if not entry and style == "open_instruct":
        found = own_verifier(module)
    if not callable(found):
        raise LookupError(f"the file defines no {entry or 'subclass of VerifierFunction'}")
    return found() if inspect.isclass(found) else found


# --- open-instruct ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class VerificationResult:
    """What a verifier of open-instruct returns."""

    score: float
    cost: float = 0.0
    reasoning: Any = None


class VerifierFunction:
    """What a verifier of open-instruct derives from."""

    def __init__(self, name: str = "", weight: float = 1.0, verifier_config: Any = None) -> None:
        self.name, self.weight, self.verifier_config = name, weight, verifier_config


def provide_open_instruct() -> None:
    """What a verifier file imports from open_instruct.ground_truth_utils, where open-instruct is not installed."""
    try:
        import open_instruct.ground_truth_utils  # noqa: F401
    except ImportError:
        package, module = types.ModuleType("open_instruct"), types.ModuleType("open_instruct.ground_truth_utils")
        package.__path__ = []
        module.__dict__.update(VerificationResult=VerificationResult, VerifierFunction=VerifierFunction,
                               VerifierConfig=object)  # fmt: skip
        sys.modules |= {"open_instruct": package, "open_instruct.ground_truth_utils": module}
        package.__dict__["ground_truth_utils"] = module


def own_verifier(module: types.ModuleType) -> Any:
    """The one class in the file that open-instruct would register. Raises LookupError where there are several."""
    base = sys.modules["open_instruct.ground_truth_utils"].VerifierFunction
    own = [value for value in vars(module).values()
           if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__]  # fmt: skip
    if len(own) > 1:
        raise LookupError(f"the file defines several verifiers: {', '.join(c.__name__ for c in own)}; name one")
    return own[0] if own else None


# --- one function per style ------------------------------------------------------------------------------------------


def by_row(call: Callable[[dict[str, Any]], Any], rows: list[dict[str, Any]]) -> Grades:
    """One grade per row; a row whose call raises has none and affects no other row."""
    out: Grades = []
    for row in rows:
        try:
            out.append([number(waited(call(row))), ""])
        except Exception as exc:  # the border
            out.append([None, shown(exc)])
    return out


def waited(value: Any) -> Any:
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def number(value: Any) -> float | None:
    """A grade as a float: alone, under `score` of a struct or object, or first in a tuple, as these tools allow."""
    if isinstance(value, dict):
        value = value["score"]
    elif isinstance(value, (tuple, list)):
        value = value[0]
    elif hasattr(value, "score"):
        value = value.score
    if value is None or isinstance(value, (str, bytes)):
        if value is None:
            return None
        raise TypeError(f"returned text, {value[:40]!r}, instead of a number")
    return float(value)


def accepted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the function takes by name; all of them where it has **kwargs."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return arguments
    taken = {p.name for p in parameters}
    return {name: value for name, value in arguments.items() if name in taken}


def trl_reward(function: Any, rows: list[dict[str, Any]], options: dict[str, Any]) -> Grades:
    columns = {name for row in rows for name in row["task"]}
    arguments: dict[str, Any] = {name: [row["task"].get(name) for row in rows] for name in sorted(columns)}
    arguments |= {"trainer_state": None, "log_extra": nothing, "log_metric": nothing}
    for name in ("prompts", "completions", "completion_ids"):
        arguments[name] = [row[name] for row in rows]
    values = list(waited(function(**accepted(function, arguments))))
    if len(values) != len(rows):
        raise ValueError(f"returned {len(values)} rewards for {len(rows)} rows")
    return [[None if value is None else float(value), ""] for value in values]


def nothing(*_: Any, **__: Any) -> None:
    """TRL's log_extra and log_metric: what a grader logs is not kept."""


def verl_score(function: Any, rows: list[dict[str, Any]], options: dict[str, Any]) -> Grades:
    return by_row(lambda row: function(**accepted(function, {**row, **options})), rows)


def open_instruct(verifier: Any, rows: list[dict[str, Any]], options: dict[str, Any]) -> Grades:
    return by_row(lambda row: verifier(**row), rows)


def openai_python(function: Any, rows: list[dict[str, Any]], options: dict[str, Any]) -> Grades:
    return by_row(lambda row: function(row["sample"], row["item"]), rows)


STYLES: dict[str, Callable[[Any, list[dict[str, Any]], dict[str, Any]], Grades]] = {
    "trl_reward": trl_reward,
    "verl_score": verl_score,
    "open_instruct": open_instruct,
    "openai_python": openai_python,
}


def main() -> None:
    """In the sandbox: the request on stdin, the reply on stdout, which nothing that the grader prints can reach."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    reply.write(json.dumps(answer(json.load(sys.stdin))))
    reply.close()
