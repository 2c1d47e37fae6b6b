"""The key of a rollout server, before a real ASGI application behind a real HTTP server."""

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from pipeline.generation import server_key


async def application(scope, receive, send):
    """Answers every request with ok."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"ok": true}'})


@pytest.fixture
def address(monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    monkeypatch.setenv(server_key.SERVER_KEY, "sesame")
    guarded = server_key.RequireKey(application)
    server = uvicorn.Server(uvicorn.Config(guarded, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("path", ["/v1/models", "/collective_rpc", "/"])
@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}])
def test_without_the_key_no_route_answers(address, path, sent):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(address + path, b"{}", sent))
    assert refused.value.code == 401


def test_with_the_key_every_route_answers(address):
    request = urllib.request.Request(address + "/collective_rpc", b"{}", server_key.headers())
    assert json.loads(urllib.request.urlopen(request).read()) == {"ok": True}


def test_no_header_is_sent_without_a_key(monkeypatch):
    monkeypatch.delenv(server_key.SERVER_KEY, raising=False)
    assert server_key.headers() == {}
