"""The endpoint that an agent's own program calls: HTTP on 127.0.0.1, one key per session, requests queued for whoever
samples.

The server's threads read and check requests and wait for the answer. Everything that needs the tokenizer or the
generator happens in the one thread that takes requests from the queues (program_episodes.py, cli/proxy.py).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.generation.openai_api import ApiError, ChatCall, events

HOST = "127.0.0.1"
MAX_BODY = 1 << 25
KEY_PREFIX = "sk-session-"


@dataclass(eq=False, slots=True)
class Waiting:
    """A request that waits for its answer. arrived: of time.monotonic."""

    call: ChatCall
    arrived: float
    answered: threading.Event = field(default_factory=threading.Event)
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        self.body, self.status = body, status
        self.answered.set()

    def refuse(self, error: ApiError) -> None:
        self.answer(error.body(), error.status)


@dataclass(eq=False, slots=True)
class ProxySession:
    """One key and the requests that came with it."""

    key: str
    queue: deque[Waiting] = field(default_factory=deque)
    closed: bool = False


class Proxy:
    """Listens while it is entered. `changed` is notified when a request arrives."""

    def __init__(self, port: int = 0, *, shared_key: str | None = None) -> None:
        """port 0 takes a free one. shared_key: it opens sessions itself, one for each KEY:NAME. Raises OSError."""
        self._shared_key = shared_key
        self.changed = threading.Condition()
        self._sessions: dict[str, ProxySession] = {}
        self._server = _Server((HOST, port), _handler(self))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for session in list(self._sessions.values()):
            self.close(session)
        self._server.shutdown()
        self._server.server_close()

    def open(self, key: str | None = None) -> ProxySession:
        session = ProxySession(key or KEY_PREFIX + secrets.token_urlsafe(24))
        with self.changed:
            self._sessions[session.key] = session
        return session

    def close(self, session: ProxySession) -> None:
        """Its key opens nothing any more, and what still waits is refused."""
        with self.changed:
            self._sessions.pop(session.key, None)
            session.closed = True
            left = list(session.queue)
            session.queue.clear()
        for waiting in left:
            waiting.refuse(ApiError("the session has ended", code="session_ended"))

    def find(self, key: str) -> ProxySession:
        """Raises ApiError, status 401."""
        with self.changed:
            session = self._sessions.get(key)
            if session is None and self._shared_key and key.partition(":")[0] == self._shared_key:
                session = self._sessions[key] = ProxySession(key)
        if session is None:
            raise ApiError("no session has this key; it is in OPENAI_API_KEY of the program", status=401,
                           code="invalid_api_key")  # fmt: skip
        return session

    def take(self) -> list[tuple[ProxySession, Waiting]]:
        """One request of each session that has any; waits for the first."""
        with self.changed:
            while not (busy := [session for session in self._sessions.values() if session.queue]):
                self.changed.wait()
            return [(session, session.queue.popleft()) for session in busy]

    def submit(self, session: ProxySession, call: ChatCall) -> Waiting:
        """Queue a call; its answer is there when `answered` is set."""
        waiting = Waiting(call, time.monotonic())
        with self.changed:
            if not session.closed:
                session.queue.append(waiting)
                self.changed.notify_all()
                return waiting
        waiting.refuse(ApiError("the session has ended", code="session_ended"))
        return waiting


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256  # many programs start at once


class ProxyHandler(BaseHTTPRequestHandler):
    """Requests of programs. proxy: set by the subclass that `_handler` makes: http.server creates the instances."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._answer(self._complete)

    def do_GET(self) -> None:
        self._answer(self._models)

    def _answer(self, act: Any) -> None:
        try:
            status, kind, body = act()
        except ApiError as exc:
            status, kind, body = exc.status, "application/json", json.dumps(exc.body()).encode()
            self.close_connection = True  # what is left of the body would be read as the next request
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _session(self) -> ProxySession:
        kind, _, key = (self.headers.get("Authorization") or "").partition(" ")
        return self.proxy.find(key.strip() if kind.lower() == "bearer" else "")

    def _models(self) -> tuple[int, str, bytes]:
        self._session()
        if self.path.rstrip("/") != "/v1/models":
            raise _nothing_at(self.path)
        model = {"id": "policy", "object": "model", "created": 0, "owned_by": "whetstone"}
        return 200, "application/json", json.dumps({"object": "list", "data": [model]}).encode()

    def _complete(self) -> tuple[int, str, bytes]:
        session = self._session()
        if self.path.partition("?")[0].rstrip("/") != "/v1/chat/completions":
            raise _nothing_at(self.path)
        call = ChatCall.of(self._json())
        waiting = self.proxy.submit(session, call)
        waiting.answered.wait()
        if waiting.status == 200 and call.stream:
            return 200, "text/event-stream", events(waiting.body, usage=call.stream_usage)
        return waiting.status, "application/json", json.dumps(waiting.body).encode()

    def _json(self) -> Any:
        size = self.headers.get("Content-Length") or ""
        if not size.isdecimal():
            raise ApiError("the request needs a Content-Length", status=411)
        if int(size) > MAX_BODY:
            raise ApiError(f"the body has {size} bytes; at most {MAX_BODY} are read", status=413)
        try:
            return json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError) as exc:
            raise ApiError(f"the body is not JSON: {exc}") from exc

    def log_message(self, *_: object) -> None:
        return

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the program has left
            return


def _handler(proxy: Proxy) -> type[ProxyHandler]:
    class Bound(ProxyHandler):
        pass

    Bound.proxy = proxy
    return Bound


def _nothing_at(path: str) -> ApiError:
    return ApiError(f"nothing at {path[:80]}; there are POST /v1/chat/completions and GET /v1/models", status=404,
                    code="not_found")  # fmt: skip


__all__ = ["Proxy", "ProxySession", "Waiting"]
