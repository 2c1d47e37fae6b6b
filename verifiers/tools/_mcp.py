"""Tools of a Model Context Protocol server over stdio, through the official client (package `mcp`, an optional extra).

Each episode has a server process of its own, started on its first use, so that servers with state keep episodes apart.
The server is trusted code: it runs outside the sandbox, with the environment that the client gives it, and ends with
its episode. A result that the server marks as an error is a mistake of the model; a server that ends, does not start or
does not answer in time is broken.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any

from verifiers.tools import Tool, ToolBroken, ToolError

START_S = 30.0
MAX_PAGES = 100  # of a server's list of tools


def mcp_tool(name: str, command: Sequence[str], *, timeout_s: float) -> Tool:
    """The server `name` as a tool file would be. Raises ValueError where the client is not installed."""
    if importlib.util.find_spec("mcp") is None:
        raise ValueError(f"mcp.{name}: the MCP client is not installed: pip install 'whetstone-rl[mcp]'")
    if not command:
        raise ValueError(f"mcp.{name}: give the server's command as a list, as in [python, server.py]")
    return Tool(name, partial(McpSession, name=name, command=tuple(command), timeout_s=timeout_s), True)


class McpSession:
    """One server process. `tool_functions` are its tools, each with its `schema`."""

    def __init__(self, *, name: str, command: tuple[str, ...], timeout_s: float) -> None:
        self._name, self._command, self._timeout_s = name, command, timeout_s
        self._queue: asyncio.Queue[tuple[str, Mapping[str, Any], Future[Any]] | None] | None = None
        self._finished: Future[None] | None = None
        self.tool_functions = {one["function"]["name"]: self._function(one) for one in self._listed()}

    def _listed(self) -> list[dict[str, Any]]:
        """Schemas of the server's tools; listed once per command, since a server offers every episode the same."""
        return _schemas(self._command, self._name, self._timeout_s)

    def _function(self, schema: dict[str, Any]) -> Callable[..., str]:
        def call(**arguments: Any) -> str:
            return self._call(schema["function"]["name"], arguments)

        call.schema = schema  # type: ignore[attr-defined]
        return call

    def _call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        if self._finished is None:
            self._start()
        assert self._queue is not None
        answer: Future[Any] = Future()
        _loop().call_soon_threadsafe(self._queue.put_nowait, (tool, arguments, answer))
        try:
            result = answer.result(self._timeout_s + 5)
        except Exception as exc:  # whatever the client or the server raises
            raise ToolBroken(f"MCP server {self._name!r}: {_reason(exc)}") from exc
        text = "\n".join(map(_text_of, result.content))
        if result.is_error:
            raise ToolError(text or f"{tool} failed")
        return text

    def _start(self) -> None:
        self._queue = asyncio.Queue()
        ready: Future[list[dict[str, Any]]] = Future()
        serving = _serve(self._command, self._queue, ready, self._timeout_s)
        self._finished = asyncio.run_coroutine_threadsafe(serving, _loop())
        try:
            ready.result(START_S)
        except Exception as exc:
            raise ToolBroken(f"MCP server {self._name!r} does not start: {_reason(exc)}") from exc

    def close(self) -> None:
        if self._finished is not None and self._queue is not None:
            _loop().call_soon_threadsafe(self._queue.put_nowait, None)
            self._finished.exception(self._timeout_s)


@lru_cache(maxsize=64)
def _schemas(command: tuple[str, ...], name: str, timeout_s: float) -> list[dict[str, Any]]:
    """Raises ValueError: a server that does not start is found before a run."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    ready: Future[list[dict[str, Any]]] = Future()
    finished = asyncio.run_coroutine_threadsafe(_serve(command, queue, ready, timeout_s), _loop())
    try:
        return ready.result(START_S)
    except Exception as exc:
        raise ValueError(f"mcp.{name}: {' '.join(command)!r} does not start: {_reason(exc)}") from exc
    finally:
        _loop().call_soon_threadsafe(queue.put_nowait, None)
        if ready.done():
            finished.exception(timeout_s)


async def _serve(
    command: Sequence[str], queue: asyncio.Queue[Any], ready: Future[list[dict[str, Any]]], timeout_s: float
) -> None:
    """Start a server, report its tools, and pass on one call after another until None.

    All in one task, because a client must be entered and left by the same one.
    """
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    waiting: list[Future[Any]] = []
    try:
        with open(os.devnull, "w") as log:
            server = stdio_client(StdioServerParameters(command=command[0], args=list(command[1:])), errlog=log)
            async with Client(server, read_timeout_seconds=timeout_s) as client:
                ready.set_result([_schema_of(tool) for tool in await _all_tools(client)])
                while (job := await queue.get()) is not None:
                    tool, arguments, answer = job
                    waiting[:] = [answer]
                    answer.set_result(await client.call_tool(tool, dict(arguments)))
                    waiting.clear()
    except BaseException as exc:  # reported to the thread that waits
        for one in [ready, *waiting]:
            if not one.done():
                one.set_exception(RuntimeError(_reason(exc)))
        if not isinstance(exc, Exception):
            raise


async def _all_tools(client: Any) -> list[Any]:
    tools: list[Any] = []
    cursor = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise RuntimeError(f"more than {MAX_PAGES} pages of tools")


def _schema_of(tool: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool.name, "description": tool.description or "",
                                             "parameters": dict(tool.input_schema)}}  # fmt: skip


def _text_of(block: Any) -> str:
    """All blocks of a result are read, not the first alone."""
    if (text := getattr(block, "text", None)) is not None:
        return str(text)
    resource = getattr(block, "resource", None)
    return str(getattr(resource, "text", f"[{getattr(block, 'type', 'block')}]"))


def _reason(exc: BaseException) -> str:
    """The innermost of grouped exceptions, in one line."""
    while isinstance(exc, BaseExceptionGroup) and exc.exceptions:
        exc = exc.exceptions[0]
    return " ".join(str(exc).split()) or type(exc).__name__


_loops: list[asyncio.AbstractEventLoop] = []
_lock = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all clients, in a thread of its own."""
    with _lock:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="mcp", daemon=True).start()
            _loops.append(loop)
        return _loops[0]


os.register_at_fork(after_in_child=_loops.clear)
