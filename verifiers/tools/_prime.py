"""Environments of Prime Intellect's `verifiers` package: as turns of an episode, as rows, as rewards.

The package runs in an interpreter of its own, because its import name is that of ours and its pins are not. One program
per environment is started and serves prompts, episodes and rewards, each session in a process of its own
(verifiers/_bridge.py, _prime_guest.py). It is trusted code outside the sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import verifiers
from verifiers._bridge import Bridge, BridgeFailed, BridgeLate
from verifiers.tools import Exchange, Tool, ToolBroken, ToolLate

GUEST = Path(__file__).with_name("_prime_guest.py")
BRIDGE_GUEST = Path(verifiers.__file__).with_name("_bridge_guest.py")
START_S = 180.0  # for importing the package and the environment
TASKS_S = 600.0  # for reading the tasks, which may be a download
COLUMN = "prime_task"  # of a row: what the environment starts from


@dataclass(frozen=True, slots=True)
class PrimeEnvironment:
    """Which environment, and where it runs.

    python: an interpreter that has the package and the environment. taskset: the name that the package imports it by.
    dirs: folders that hold it, where it is not installed. config: fields of the package's environment config.
    forward_env: variables that it needs, such as the key of a judge; it gets no other.
    """

    python: str
    taskset: str
    dirs: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    forward_env: Sequence[str] = ()

    def bridge(self) -> Bridge:
        """The program of this environment, the same for every part of a run. Raises ValueError."""
        python = Path(self.python).expanduser()
        for folder in self.dirs:
            if not Path(folder).is_dir():
                raise ValueError(f"dirs: {folder} is not a directory")
        if not (python.is_file() or "/" not in self.python):
            raise ValueError(
                f"python: {self.python} does not exist; name an interpreter that has the verifiers package"
            )
        spec = {"taskset": self.taskset, "dirs": [str(Path(folder).resolve()) for folder in self.dirs],
                "environment": dict(self.config)}  # fmt: skip
        # absolute, and not resolved: the link of a virtual environment is what makes it one
        program = str(python.absolute()) if python.is_file() else self.python
        return _bridge(program, json.dumps(spec, sort_keys=True), tuple(self.forward_env))

    def rows(self, limit: int | None) -> list[dict[str, Any]]:
        """The tasks as rows: a prompt, the task's own fields, and what the episode starts from. Raises ValueError."""
        try:
            found = self.bridge().ask({"do": "tasks", "limit": limit}, timeout_s=TASKS_S)
        except BridgeFailed as exc:
            raise ValueError(str(exc)) from None
        return [_row(number, one) for number, one in enumerate(found)]


def _row(number: int, one: Mapping[str, Any]) -> dict[str, Any]:
    data = one["data"]
    name = data.get("name") or data.get("description") or data.get("id") or ""
    opened_by_the_environment = f"Task {number}{': ' if name else ''}{name}"
    prompt = [dict(message) for message in one["messages"] or ()] or opened_by_the_environment
    own = {key: value for key, value in data.items() if key not in TASK_FIELDS and value is not None}
    return {**own, "prompt": prompt, COLUMN: data}


# fields that every task has: they are in COLUMN
TASK_FIELDS = frozenset(
    "idx id name description prompt system_prompt image workdir agent_user skills network_allow network_block "
    "artifacts artifact_max_bytes timeout resources messages completion chosen rejected tools task".split()
)


@lru_cache(maxsize=32)
def _bridge(python: str, spec: str, forward_env: tuple[str, ...]) -> Bridge:
    import os

    given = {name: os.environ[name] for name in forward_env if name in os.environ}
    folders = json.loads(spec)["dirs"]
    command = [python, "-P", str(GUEST), str(BRIDGE_GUEST), spec]
    # PYTHONPATH for the processes that the environment starts itself, as its tool servers
    return Bridge(command, environment={**given, "PYTHONPATH": os.pathsep.join(folders)}, start_s=START_S)


def prime_tool(environment: PrimeEnvironment, *, timeout_s: float) -> Tool:
    """The environment as a tool file would be: a session that answers whole turns. Raises ValueError.

    timeout_s: of one turn, with one call of a tool; of the start.
    """
    try:
        environment.bridge().ask({"do": "describe"}, timeout_s=timeout_s)
    except BridgeFailed as exc:
        raise ValueError(f"prime: {environment.taskset}: {exc}") from None
    return Tool(f"prime:{environment.taskset}", partial(PrimeSession, environment, timeout_s=timeout_s), True)


class PrimeSession:
    """One episode in a process of its own."""

    def __init__(self, environment: PrimeEnvironment, /, *, timeout_s: float) -> None:
        self._environment, self._timeout_s = environment, timeout_s
        self._session: Any = None
        self._messages: list[dict[str, Any]] = []  # as the environment sent them last
        self._end: Mapping[str, Any] | None = None

    def reset(self, **task: Any) -> Exchange:
        """Start the episode of a row."""
        self._session = self._environment.bridge().open()
        return self._exchange({"do": "start", "task": task_fields(task)}, 1)

    def take_turn(self, message: Mapping[str, Any], *, finished: bool) -> Exchange:
        calls = message.get("tool_calls") or []
        reason = "length" if not finished else "tool_calls" if calls else "stop"
        return self._exchange({"do": "reply", "message": _to_wire(message), "finish_reason": reason}, len(calls) or 1)

    def get_reward(self) -> float:
        """What the episode earned; one that has not ended is ended first, as by a limit on its turns."""
        if self._end is None:
            self._exchange({"do": "stop"}, 1)
        assert self._end is not None
        reward = self._end["reward"]
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise ToolBroken(f"the reward is {reward!r}, not a number")
        return float(reward)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _exchange(self, request: Mapping[str, Any], calls: int) -> Exchange:
        if self._session is None:
            raise ToolBroken("the episode was not started")
        try:
            # a little less than the caller's own deadline, so that the process ends with the episode
            event = self._session.ask(request, timeout_s=0.95 * self._timeout_s * calls)
        except BridgeLate as exc:
            raise ToolLate(f"{self._environment.taskset}: {exc}") from None
        except BridgeFailed as exc:
            self._session.close()
            raise ToolBroken(f"{self._environment.taskset}: {exc}") from None
        return self._next(event)

    def _next(self, event: Any) -> Exchange:
        if not isinstance(event, Mapping) or not ("end" in event or isinstance(event.get("messages"), list)):
            raise ToolBroken(f"{self._environment.taskset}: neither messages nor an end: {str(event)[:80]}")
        if "end" in event:
            self._end = event["end"]
            return Exchange(None)
        before, self._messages = self._messages, event["messages"]
        sent = len(before)
        goes_on = bool(before) and self._messages[:sent] == before and len(self._messages) > sent + 1
        goes_on = goes_on and self._messages[sent].get("role") == "assistant"
        read = self._messages[sent + 1 :] if goes_on else self._messages
        return Exchange(list(map(_from_wire, read)), goes_on, event.get("tools") or ())


def environment_files(environment: Mapping[str, Any]) -> list[Path]:
    """The files of an environment that is not installed, which a stage's result depends on."""
    name = str(environment.get("taskset")).rpartition("/")[2].partition("@")[0].replace("-", "_").lower()
    found: list[Path] = []
    for folder in environment.get("dirs") or ():
        found += [path for path in (Path(folder) / f"{name}.py", *sorted((Path(folder) / name).rglob("*.py")))
                  if path.is_file()]  # fmt: skip
    return found


def task_fields(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a task starts from: the column of rows that were read from the environment, else the row's own fields."""
    own = task.get(COLUMN)
    return own if isinstance(own, Mapping) else task


def _to_wire(message: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's message as OpenAI's endpoint returns it: arguments as text, thinking beside the content."""
    content, thought = str(message.get("content") or ""), message.get("reasoning_content")
    said = verifiers.after_thinking(content)
    if said != content:
        thought, content = content[: len(content) - len(said)], said.lstrip("\n")
        for opening, closing in verifiers.THINKING_TAGS:
            thought = thought.strip().removeprefix(opening).removesuffix(closing).strip()
    calls = [{"id": call["id"], "type": "function",
              "function": {"name": call["function"]["name"], "arguments": json.dumps(call["function"]["arguments"])}}
             for call in message.get("tool_calls") or ()]  # fmt: skip
    return {"role": "assistant", "content": content, **({"reasoning_content": thought} if thought else {}),
            **({"tool_calls": calls} if calls else {})}  # fmt: skip


def _from_wire(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of a request as chat templates read it: content as text, arguments as an object. Raises ToolBroken."""
    content = message.get("content")
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            raise ToolBroken("the environment sent an image or another part that is not text")
        content = "\n".join(str(part["text"]) for part in content)
    out = {key: value for key, value in message.items() if value is not None} | {"content": content or ""}
    if out.get("tool_calls"):
        out["tool_calls"] = [{**call, "function": {**call["function"], "arguments": _object(call)}}
                             for call in out["tool_calls"]]  # fmt: skip
    return out


def _object(call: Mapping[str, Any]) -> Any:
    try:
        return json.loads(call["function"]["arguments"])
    except ValueError:
        return {}


__all__ = ["COLUMN", "PrimeEnvironment", "environment_files", "prime_tool", "task_fields"]
