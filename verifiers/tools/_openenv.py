"""Environments that an OpenEnv server plays, over its WebSocket protocol: one connection, one environment, one episode.

The server is trusted code that somebody else has started. Its tools are offered where it has tools (it takes
`call_tool` actions); else one tool `step`, whose arguments are the environment's action; or, with `action: FIELD`, each
turn's text is an action by itself and the policy reads the observation as the user's next message.

A connection that was lost is never opened again within an episode: the server would go on with a fresh environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

import verifiers
from verifiers.tools import Exchange, Tool, ToolBroken, ToolError, ToolLate, as_text

CONNECT_S = 10.0
MAX_SCHEMA_BYTES = 4 << 20
MAX_MESSAGE_BYTES = 64 << 20
TOOL_ACTIONS = ("Action", "CallToolAction", "ListToolsAction")  # titles of actions that call the environment's tools
MISTAKES = ("VALIDATION_ERROR", "EXECUTION_ERROR")  # codes after which the environment goes on


@dataclass(frozen=True, slots=True)
class OpenEnvServer:
    """url: http:// or https:// of the server. action: field of the action that takes a turn's text; "" offers tools.
    observation: field of the observation that the policy reads; "" for all of them, as JSON."""

    url: str
    action: str = ""
    observation: str = ""

    def websocket(self) -> str:
        return self.url.rstrip("/").replace("http", "ws", 1) + "/ws"


def openenv_tool(server: OpenEnvServer, *, timeout_s: float) -> Tool:
    """The environment as a tool file would be. Raises ValueError where the server cannot be used."""
    if importlib.util.find_spec("websockets") is None:
        raise ValueError("openenv: the websockets package is not installed: pip install 'whetstone-rl[openenv]'")
    if urlsplit(server.url).scheme not in ("http", "https"):
        raise ValueError(f"openenv.url: {server.url!r} is no http:// or https:// address")
    fields = _action_schema(server.url).get("properties") or {}
    if server.action and server.action not in fields:
        raise ValueError(f"openenv.action: the action has no field {server.action!r}; have: {', '.join(fields)}")
    kind = OpenEnvTurns if server.action else OpenEnvTools
    return Tool(f"openenv:{server.url}", partial(kind, server, timeout_s=timeout_s), True)


@lru_cache(maxsize=32)
def _action_schema(url: str) -> Mapping[str, Any]:
    """Raises ValueError."""
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/schema", timeout=CONNECT_S) as reply:
            schema = json.loads(reply.read(MAX_SCHEMA_BYTES))["action"]
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError) as exc:
        raise ValueError(f"openenv.url: {url} answers no schema of an environment: {exc}") from None
    if not isinstance(schema, Mapping):
        raise ValueError(f"openenv.url: {url} describes no action")
    return schema


class OpenEnvConnection:
    """One environment of a server. done: whether it has ended its episode; total: the sum of its rewards."""

    def __init__(self, server: OpenEnvServer, timeout_s: float) -> None:
        self._server, self._timeout_s = server, timeout_s
        self._socket: Any = None
        self._lost = ""
        self.done, self.total = False, 0.0

    def ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """The observation that a `reset` or `step` brings. Raises ToolError, ToolBroken."""
        if self._lost:
            raise ToolBroken(self._lost)
        reply = self._reply(json.dumps({"type": kind, "data": data}))
        try:
            answer = json.loads(reply)
            content, refused = answer["data"], answer["type"] == "error"
            observation = {} if refused else dict(content["observation"])
            if not refused:
                self._count(content)
        except (ValueError, KeyError, TypeError) as exc:
            raise self._broken(f"an answer that is no observation: {str(reply)[:80]} ({exc})") from None
        if refused:
            raise self._refusal(content)
        return observation

    def _reply(self, message: str) -> str | bytes:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        deadline = time.monotonic() + 0.95 * self._timeout_s  # a little before the caller's own deadline
        try:
            if self._socket is None:
                near = urlsplit(self._server.url).hostname in ("127.0.0.1", "localhost", "::1")
                opening = connect(self._server.websocket(), open_timeout=min(CONNECT_S, self._timeout_s),
                                  max_size=MAX_MESSAGE_BYTES, proxy=None if near else True)  # fmt: skip
                self._socket = opening.__enter__()  # websockets 17 warns where it is used without; closed in close()
            with contextlib.suppress(WebSocketException):  # a server without room has answered and closed already
                self._socket.send(message)
            reply: str | bytes = self._socket.recv(timeout=max(0.01, deadline - time.monotonic()))
            return reply
        except TimeoutError:
            self._broken("it did not answer in time")
            raise ToolLate(f"{self._server.url}: no answer within {self._timeout_s:g} s") from None
        except (OSError, WebSocketException) as exc:
            raise self._broken(f"the connection ended: {exc}") from None

    def _refusal(self, content: Mapping[str, Any]) -> Exception:
        """A ToolError for what the policy did wrong, a ToolBroken for what the server did."""
        code, text = content.get("code"), str(content.get("message"))
        if code in MISTAKES:
            # the message of a validation error does not say what is wrong; its errors do
            details = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in content.get("errors") or ()]
            return ToolError("; ".join(details) or text)
        hint = " (start the server with as many concurrent environments as a step has episodes)"
        return self._broken(f"{text}{hint if code == 'CAPACITY_REACHED' else ''}")

    def _count(self, content: Mapping[str, Any]) -> None:
        """Add the reward and note the end. Raises TypeError."""
        reward = content.get("reward")
        if reward is not None and not (isinstance(reward, int | float) and math.isfinite(reward)):
            raise TypeError(f"the reward is {reward!r}")
        self.total += float(reward or 0.0)
        self.done = content.get("done") is True

    def _broken(self, reason: str) -> ToolBroken:
        self._lost = self._lost or f"OpenEnv server {self._server.url}: {reason}"
        self.close()
        return ToolBroken(self._lost)

    def close(self) -> None:
        if self._socket is not None:
            socket, self._socket = self._socket, None
            socket.close_timeout = 1.0
            socket.close()

    def shown(self, observation: Mapping[str, Any]) -> str:
        """What the policy reads of an observation. Raises ToolBroken."""
        if self._server.observation:
            if self._server.observation not in observation:
                raise self._broken(f"the observation has no field {self._server.observation!r}; have: "
                                   f"{', '.join(observation)}")  # fmt: skip
            return as_text(observation[self._server.observation])
        said = {key: value for key, value in observation.items() if key != "metadata" and value is not None}
        return as_text(next(iter(said.values())) if len(said) == 1 else said) if said else ""


class OpenEnvTools:
    """An episode in which the environment's tools are called, or its `step`."""

    def __init__(self, server: OpenEnvServer, /, *, timeout_s: float) -> None:
        self._connection = OpenEnvConnection(server, timeout_s)
        schema = _action_schema(server.url)
        if schema.get("title") in TOOL_ACTIONS:
            listed = _tools(server, timeout_s)
            self.tool_functions = {tool["function"]["name"]: self._function(tool, self._call) for tool in listed}
        else:
            self.tool_functions = {"step": self._function(_step_schema(schema), self._step)}

    @property
    def done(self) -> bool:
        return self._connection.done

    def reset(self, **task: Any) -> str:
        text = self._connection.shown(_reset(self._connection, task))
        return f"\n\n{text}" if text else ""

    def get_reward(self) -> float:
        return self._connection.total

    def close(self) -> None:
        self._connection.close()

    def _function(self, schema: dict[str, Any], run: Callable[[str, Mapping[str, Any]], str]) -> Callable[..., str]:
        def call(**arguments: Any) -> str:
            if self.done:
                raise ToolError("the episode has ended")
            return run(schema["function"]["name"], arguments)

        call.schema = schema  # type: ignore[attr-defined]
        return call

    def _step(self, _: str, arguments: Mapping[str, Any]) -> str:
        return self._connection.shown(self._connection.ask("step", arguments))

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        observation = self._connection.ask("step", {"type": "call_tool", "tool_name": name, "arguments": arguments})
        if (error := observation.get("error")) is not None:
            raise ToolError(str(error.get("message", error) if isinstance(error, Mapping) else error))
        return _result_text(observation.get("result"))


class OpenEnvTurns:
    """An episode in which each turn's text is the environment's action."""

    def __init__(self, server: OpenEnvServer, /, *, timeout_s: float) -> None:
        self._server, self._connection = server, OpenEnvConnection(server, timeout_s)
        self._prompt = ""

    def reset(self, **task: Any) -> Exchange:
        text = self._connection.shown(_reset(self._connection, task))
        prompt = task.get("prompt")
        opening = [dict(m) for m in prompt] if isinstance(prompt, list) else []
        if isinstance(prompt, str):
            text = f"{prompt}\n\n{text}" if text else prompt
        if self._connection.done:
            return Exchange(None)
        return Exchange([*opening, {"role": "user", "content": text}])

    def take_turn(self, message: Mapping[str, Any], *, finished: bool) -> Exchange:
        said = verifiers.after_thinking(str(message.get("content") or "")).strip()
        try:
            text = self._connection.shown(self._connection.ask("step", {self._server.action: said}))
        except ToolError as exc:
            text = f"Error: {exc}"
        return Exchange(None if self._connection.done else [{"role": "user", "content": text}])

    def get_reward(self) -> float:
        return self._connection.total

    def close(self) -> None:
        self._connection.close()


def _reset(connection: OpenEnvConnection, task: Mapping[str, Any]) -> dict[str, Any]:
    """Start the environment with the fields of the row's task; the server passes on those that its `reset` names.

    Raises ToolBroken.
    """
    given = {key: value for key, value in task.items() if key != "prompt"}
    try:
        return connection.ask("reset", json.loads(json.dumps(given, default=str)))
    except ToolError as exc:
        raise ToolBroken(f"reset: {exc}") from None


@lru_cache(maxsize=32)
def _tools(server: OpenEnvServer, timeout_s: float) -> list[dict[str, Any]]:
    """Schemas of the environment's tools, listed once. Raises ValueError."""
    connection = OpenEnvConnection(server, timeout_s)
    try:
        found = connection.ask("step", {"type": "list_tools"})["tools"]
        return [{"type": "function", "function": {"name": tool["name"], "description": tool.get("description") or "",
                                                  "parameters": tool["input_schema"]}} for tool in found]  # fmt: skip
    except (ToolError, ToolBroken, KeyError, TypeError) as exc:
        raise ValueError(f"openenv: {server.url} does not list its tools: {exc}") from None
    finally:
        connection.close()


def _step_schema(action: Mapping[str, Any]) -> dict[str, Any]:
    """A tool whose arguments are the fields of the environment's action."""
    properties = {name: value for name, value in action["properties"].items() if name != "metadata"}
    kept = {key: action[key] for key in ("required", "$defs") if key in action}
    text = str(action.get("description") or "The next action of the environment.")
    return {"type": "function", "function": {"name": "step", "description": text, "parameters": {
        "type": "object", "properties": properties, **kept}}}  # fmt: skip


def _result_text(result: Any) -> str:
    """A tool's result as text: its data, else the text of its content blocks. Raises ToolError for an error."""
    if not (isinstance(result, Mapping) and isinstance(result.get("content"), list)):
        return as_text(result)
    text = "\n".join(str(block.get("text", f"[{block.get('type')}]")) for block in result["content"])
    if result.get("is_error") or result.get("isError"):
        raise ToolError(text or "the tool failed")
    return text or as_text(result.get("data"))


__all__ = ["OpenEnvServer", "openenv_tool"]
