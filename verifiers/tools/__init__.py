"""Tools that a policy calls while it answers. No torch, no model.

A tool is one file, and the file's name is its registration. It defines a function of that name,

    def calculator(expression: str) -> str:
        '''Compute the value of an arithmetic expression.

        Args:
            expression: Numbers with + - * / and brackets.
        '''

or, if it keeps state between the calls of an episode, a class `Session` whose public methods are the tools:

    class Session:
        def __init__(self, *, timeout_s: float = 5.0): ...   its settings in the YAML
        def reset(self, **task): ...                         optional: the fields of the row's task, before any call
        def python(self, code: str) -> str: ...
        def get_reward(self) -> float: ...                   optional: what the episode earned
        def close(self): ...                                 optional

This is also the contract of TRL's `environment_factory`: such a class runs unchanged. The type hints and the docstring
become the schema that the model reads. An environment that has ended its episode says so with an attribute `done`; one
that answers whole turns, and runs their calls itself, has `take_turn` (TurnEnvironment). A file also defines

    EXAMPLES = (ToolExample(...), ...)       calls and what they return, checked by the conformance kit

A mistake in a call raises ToolError, whose text the model reads. Any other exception is also shown to the model, as
`TypeError: ...`; ToolBroken says that the tool itself failed, which ends the episode without a score.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

from verifiers._user_files import import_user_file, named_file
from verifiers.tools._arguments import ToolError, checked_arguments

TOOLS_DIR = Path(__file__).parent
NOT_TOOLS = frozenset({"reset", "close", "get_reward"})  # public methods of a session that the model cannot call


class ToolBroken(RuntimeError):
    """The tool itself failed, through no fault of the call: the episode has no score."""


class ToolLate(ToolBroken):
    """The tool did not answer within its seconds."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the policy reads next, from an environment that answers whole turns.

    messages: None where the environment has ended the episode. continues: whether they follow the conversation so far;
    else they are the whole conversation. tools: schemas of the tools offered from here on; None leaves them as they
    are.
    """

    messages: Sequence[Mapping[str, Any]] | None
    continues: bool = True
    tools: Sequence[Mapping[str, Any]] | None = None


class TurnEnvironment(Protocol):
    """A session that gets every turn of the policy, its calls included, and says what the policy reads next."""

    def reset(self, **task: Any) -> Exchange:
        """The opening of the conversation."""
        ...

    def take_turn(self, message: Mapping[str, Any], *, finished: bool) -> Exchange:
        """message: the assistant's, with `tool_calls` if there are any. finished: False where a limit on tokens cut it
        off; the episode then ends, whatever is returned. Raises ToolBroken."""
        ...


@dataclass(frozen=True, slots=True)
class ToolExample:
    """One row of a tool's own evidence.

    kind: `right` returns exactly `output`; `mistake` raises a ToolError that contains `output`; `hostile` may do
        either, within the deadline and the limit on output.
    calls: arguments of successive calls in one session; the last one counts. With several tools in a file, each is
        (tool, arguments).
    """

    kind: Literal["right", "mistake", "hostile"]
    calls: Sequence[Any]
    output: str = ""
    task: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tool:
    """A loaded tool file, or any class with the contract of a session."""

    name: str
    factory: Callable[..., Any]  # of a session; or the function itself
    is_session: bool
    module: ModuleType | None = None

    def open(self, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Callable[..., Any]]]:
        """(session or None, tool name -> function) for one episode. Raises ValueError for unknown settings."""
        if not self.is_session:
            if settings:
                raise ValueError(f"tool {self.name!r} has no settings; remove {sorted(settings)[0]!r}")
            return None, {self.name: self.factory}
        known = _settings_of(self.factory)
        for key in settings:
            if known is not None and key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"tool {self.name!r} has no setting {key!r}{hint}; have: {', '.join(known) or 'none'}")
        session = self.factory(**settings)
        return session, methods_of(session)


def _settings_of(factory: Callable[..., Any]) -> list[str] | None:
    """Names of the keyword arguments; None if it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def methods_of(session: Any) -> dict[str, Callable[..., Any]]:
    """The public methods of a session that the model may call, or the `tool_functions` that it has made itself.

    Raises ValueError if there are none, and the session does not answer whole turns.
    """
    if callable(getattr(session, "take_turn", None)):
        return {}
    if isinstance(made := getattr(session, "tool_functions", None), dict) and made:
        return dict(made)
    members = inspect.getmembers(session, predicate=inspect.ismethod)
    methods: dict[str, Callable[..., Any]] = {
        name: method for name, method in members if not name.startswith("_") and name not in NOT_TOOLS
    }
    if not methods:
        raise ValueError(f"{type(session).__name__} has no public methods besides {', '.join(sorted(NOT_TOOLS))}, so "
                         "there is no tool to call")  # fmt: skip
    return methods


class Toolbox:
    """The tools of one episode. Nothing is shared with other episodes."""

    def __init__(self, tools: Sequence[tuple[Tool, Mapping[str, Any]]]) -> None:
        """Raises ValueError for unknown settings and for two tools of one name."""
        self.sessions: list[Any] = []
        self.functions: dict[str, Callable[..., Any]] = {}
        for tool, settings in tools:
            session, functions = tool.open(settings)
            if session is not None:
                self.sessions.append(session)
            if twice := sorted(functions.keys() & self.functions.keys()):
                raise ValueError(f"two tools are called {twice[0]!r}; rename one")
            self.functions |= functions
        if self.answers_turns and len(tools) > 1:
            raise ValueError(
                "an environment that answers whole turns can only be the one tool of a run; remove the others"
            )

    @property
    def answers_turns(self) -> bool:
        """Whether a session gets whole turns instead of single calls."""
        return any(callable(getattr(session, "take_turn", None)) for session in self.sessions)

    @property
    def done(self) -> bool:
        """Whether an environment says that its episode has ended."""
        return any(getattr(session, "done", False) is True for session in self.sessions)

    def reset(self, task: Mapping[str, Any]) -> str | Exchange:
        """Start every session with the row's task; returns what their `reset` returned, joined by line breaks, or the
        opening of an environment that answers turns."""
        texts = []
        for session in self.sessions:
            reset = getattr(session, "reset", None)
            if reset is not None:
                text = reset(**_accepted(reset, task))
                if isinstance(text, Exchange):
                    return text
                texts += [] if text is None else [as_text(text)]
        return "\n".join(texts)

    def call(self, name: str, arguments: Any) -> str:
        """What the tool returns, as text. Raises ToolError for a call that is wrong, and what the tool raises."""
        if name not in self.functions:
            near = difflib.get_close_matches(name, self.functions, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ToolError(f"there is no tool {name[:80]!r}{hint}; have: {', '.join(self.functions)}")
        function = self.functions[name]
        return as_text(function(**checked_arguments(name, function, arguments)))

    def take_turn(self, message: Mapping[str, Any], *, finished: bool) -> Exchange:
        """Pass a turn on to the environment that answers turns. Raises ToolBroken, and what the environment raises."""
        return cast(TurnEnvironment, self.sessions[0]).take_turn(message, finished=finished)

    def reward(self) -> float | None:
        """The sum of the sessions' own rewards; None if no session has one. Raises ToolBroken for one that is NaN."""
        rewards = [s.get_reward() for s in self.sessions if callable(getattr(s, "get_reward", None))]
        given = [float(reward) for reward in rewards if reward is not None]
        if not all(map(math.isfinite, given)):
            raise ToolBroken(f"the reward is {next(r for r in given if not math.isfinite(r))}, not a finite number")
        return sum(given) if given else None

    def close(self) -> None:
        for session in self.sessions:
            if callable(getattr(session, "close", None)):
                session.close()


def _accepted(reset: Callable[..., Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the task that `reset` names; all of them if it takes **anything."""
    parameters = inspect.signature(reset).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(task)
    return {p.name: task[p.name] for p in parameters if p.name in task}


def as_text(value: Any) -> str:
    """A tool's result as the model reads it: text as it is, anything else as JSON where that is possible."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


# --- the registry ---------------------------------------------------------------------------------------------------


def available(directories: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Name -> file of every tool: built in, and in the user's directories.

    Raises ValueError if a directory is missing or two files define one name.
    """
    found = {p.stem: p for p in sorted(TOOLS_DIR.glob("*.py")) if not p.stem.startswith("_")}
    for directory in map(Path, directories):
        if not directory.is_dir():
            what = "is a file; name its directory" if directory.is_file() else "does not exist"
            raise ValueError(f"tool directory {directory} {what}")
        for path in sorted(directory.glob("*.py")):
            if path.stem.startswith("_") or not _is_tool(path):
                continue
            if path.stem in found and found[path.stem].resolve() != path.resolve():
                raise ValueError(f"tool {path.stem!r} is defined twice: {found[path.stem]} and {path}; rename one file")
            found[path.stem] = path
    return found


def _is_tool(path: Path) -> bool:
    pattern = rf"^(def {re.escape(path.stem)}\s*\(|class Session\b)"
    return re.search(pattern, path.read_text("utf-8", "replace"), re.MULTILINE) is not None


def load(name: str, directories: Sequence[str | Path] = ()) -> Tool:
    """The tool called `name`. Raises ValueError with the known names if there is none, or if it cannot be imported."""
    path = named_file("tool", name, available(directories), directories, f"function {name!r} and no class Session")
    ours = path.parent.resolve() == TOOLS_DIR.resolve()
    module = importlib.import_module(f"verifiers.tools.{name}") if ours else import_path(path)
    session = getattr(module, "Session", None)
    factory = session or getattr(module, name, None)
    if factory is None:
        raise ValueError(f"{path}: a tool defines a function {name!r} or a class Session; see `make tool NAME=...`")
    return Tool(name, factory, session is not None, module)


def load_class(reference: str) -> Tool:
    """The class that `file.py:Class` or `package.module:Class` names, as a tool. Raises ValueError.

    Any class with the contract of TRL's `environment_factory` will do.
    """
    module_part, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"{reference!r} does not name a class; write file.py:Class or package.module:Class")
    try:
        module = import_path(Path(module_part)) if module_part.endswith(".py") else importlib.import_module(module_part)
    except (ImportError, OSError) as exc:
        raise ValueError(f"{reference!r} cannot be imported: {exc}") from exc
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(f"{module_part} defines no class {name!r}")
    return Tool(name, factory, True, module)


def import_path(path: Path) -> ModuleType:
    """The module in a user's file. Raises FileNotFoundError, and ValueError for a file that cannot be imported."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return import_user_file(f"user_tools.{path.stem}", path)


__all__ = ["Exchange", "Tool", "ToolBroken", "ToolError", "ToolExample", "ToolLate", "Toolbox", "TurnEnvironment",
           "as_text", "available", "load", "load_class"]  # fmt: skip
