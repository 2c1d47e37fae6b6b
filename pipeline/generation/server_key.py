"""The key of a rollout server: every request needs it, the one that replaces the weights among them.

vLLM's own `--api-key` guards only its /v1, /v2, /inference and /cohere routes, so that whoever reaches the port could
still load weights through /collective_rpc. The key is read from the environment, never from a command line.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

SERVER_KEY = "WHETSTONE_SERVER_KEY"


def headers() -> dict[str, str]:
    """What a client sends."""
    key = os.environ.get(SERVER_KEY, "")
    return {"Authorization": f"Bearer {key}"} if key else {}


class RequireKey:
    """ASGI middleware: 401 for every HTTP and websocket request without the key."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app, self.key = app, os.environ[SERVER_KEY].encode()

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        sent = dict(scope.get("headers") or []).get(b"authorization", b"")
        if scope["type"] in ("http", "websocket") and not hmac.compare_digest(sent, b"Bearer " + self.key):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this server needs WHETSTONE_SERVER_KEY\n"})
            return
        await self.app(scope, receive, send)
