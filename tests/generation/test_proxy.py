"""The endpoint over HTTP, through OpenAI's own client: what it answers, what it refuses, who may ask."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.generation.openai_api import ApiError, ChatCall, ChatChoice, events, response
from pipeline.generation.proxy import HOST, Proxy, ProxySession

openai = pytest.importorskip("openai")
USER = [{"role": "user", "content": "hello"}]
CHOICE = ChatChoice("hi there", "", [], True, [("hi", -0.25), (" there", -0.5), ("</s>", -1.0)])


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Proxy, ProxySession]]:
    """Answers every call with `hi there`, n times."""
    with Proxy() as proxy:
        session = proxy.open()

        def answer() -> None:
            while True:
                for _, waiting in proxy.take():
                    if "refuse me" in str(waiting.call.messages):
                        waiting.refuse(ApiError("the episode has had its 3 calls", code="max_turns"))
                        continue
                    waiting.answer(response(waiting.call, "0-0", [CHOICE] * waiting.call.n, prompt_tokens=5))

        threading.Thread(target=answer, daemon=True).start()
        yield proxy, session


@pytest.fixture(scope="module")
def client(endpoint: tuple[Proxy, ProxySession]) -> Any:
    return openai.OpenAI(base_url=endpoint[0].url, api_key=endpoint[1].key, max_retries=0)


def test_openais_client_reads_an_answer_its_log_probs_and_its_usage(client: Any) -> None:
    out = client.chat.completions.create(model="any", messages=USER, n=2, logprobs=True, temperature=0.2, max_tokens=9)
    assert [(c.message.content, c.finish_reason) for c in out.choices] == [("hi there", "stop")] * 2
    assert [(t.token, t.logprob) for t in out.choices[0].logprobs.content] == list(CHOICE.tokens)
    assert (out.usage.prompt_tokens, out.usage.completion_tokens) == (5, 6)
    assert [m.id for m in client.models.list()] == ["policy"]


def test_openais_client_reads_a_stream(client: Any) -> None:
    chunks = list(client.chat.completions.create(model="any", messages=USER, stream=True,
                                                 stream_options={"include_usage": True}))  # fmt: skip
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hi there"
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, "stop"]
    assert chunks[-1].usage.total_tokens == 8


def test_tool_calls_arrive_alike_with_and_without_a_stream() -> None:
    call = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": '{"a": 1}'}}
    body = response(ChatCall.of({"messages": USER}), "1-0", [ChatChoice("", "", [call], True, [])], prompt_tokens=1)
    parsed = openai.types.chat.ChatCompletion.model_validate(body)
    assert parsed.choices[0].finish_reason == "tool_calls" and parsed.choices[0].message.content is None
    assert parsed.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
    first = json.loads(events(body, usage=False).split(b"\n\n")[0].removeprefix(b"data: "))
    chunk = openai.types.chat.ChatCompletionChunk.model_validate(first)
    assert chunk.choices[0].delta.tool_calls[0].index == 0


def test_a_limit_is_an_error_that_the_client_does_not_retry(endpoint: Any) -> None:
    client = openai.OpenAI(base_url=endpoint[0].url, api_key=endpoint[1].key, max_retries=5)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "refuse me"}])
    assert caught.value.code == "max_turns"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("messages", [], "messages"), ("messages", "hello", "messages"), ("messages", [{"content": "x"}], "role"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ("n", 0, "n: expected"), ("n", True, "n: expected"), ("max_tokens", 1.5, "max_tokens: expected"),
        ("stop", [""], "stop"), ("stop", 7, "stop"), ("stream", "yes", "stream: expected"), ("seed", "x", "seed"),
        ("tools", [{"name": "x"}], "tools: tool 1"), ("tools", {}, "tools"),
        ("response_format", {"type": "json_object"}, "response_format"), ("tool_choice", "required", "tool_choice"),
        ("top_logprobs", 3, "top_logprobs"), ("presence_penalty", 0.5, "presence_penalty"),
        ("max_token", 3, "max_token: not supported here; did you mean 'max_tokens'"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_and_cannot_be_done_is_refused_by_name(field: str, value: Any, named: str) -> None:
    with pytest.raises(ApiError) as caught:
        ChatCall.of({"messages": USER, field: value})
    assert named in str(caught.value) and caught.value.status == 400


def test_fields_that_change_nothing_are_taken() -> None:
    call = ChatCall.of({
        "messages": USER, "model": "gpt", "user": "me", "tools": [], "tool_choice": "auto", "stop": None, "n": None,
        "presence_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}, "max_completion_tokens": 4,
        "max_tokens": 8,
    })  # fmt: skip
    assert (call.tools, call.n, call.max_tokens, call.stop) == (None, 1, 4, ())


def raw(proxy: Proxy, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
    port = int(proxy.url.rpartition(":")[2].split("/")[0])
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_only_a_sessions_key_opens_it(endpoint: tuple[Proxy, ProxySession]) -> None:
    proxy, session = endpoint
    body = json.dumps({"messages": USER}).encode()
    for key in ("", "Bearer", "Bearer sk-other", f"Basic {session.key}"):
        status, said = raw(proxy, "POST", "/v1/chat/completions", body, Authorization=key)
        assert (status, said["error"]["code"]) == (401, "invalid_api_key")
    other = proxy.open()
    proxy.close(other)
    assert raw(proxy, "POST", "/v1/chat/completions", body, Authorization=f"Bearer {other.key}")[0] == 401
    assert raw(proxy, "POST", "/v1/chat/completions", body, Authorization=f"Bearer {session.key}")[0] == 200


def test_other_paths_and_bodies_have_a_status_of_their_own(endpoint: tuple[Proxy, ProxySession]) -> None:
    proxy, session = endpoint
    key = f"Bearer {session.key}"
    assert raw(proxy, "POST", "/v1/responses", b"{}", Authorization=key)[0] == 404
    assert raw(proxy, "POST", "/v1/chat/completions", b"{", Authorization=key)[0] == 400
    assert raw(proxy, "POST", "/v1/chat/completions", b"[1]", Authorization=key)[0] == 400
    status, said = raw(proxy, "POST", "/v1/chat/completions", b"", Authorization=key, Content_Length=str(1 << 40))
    assert (status, said["error"]["type"]) == (413, "invalid_request_error")


def test_it_listens_on_this_machine_alone(endpoint: tuple[Proxy, ProxySession]) -> None:
    assert endpoint[0]._server.server_address[0] == "127.0.0.1"
    port = endpoint[0]._server.server_address[1]
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass  # another address of this machine, which a server on all interfaces would answer


def test_what_waits_when_a_session_ends_is_refused() -> None:
    with Proxy() as proxy:
        session = proxy.open()
        waiting = proxy.submit(session, ChatCall.of({"messages": USER}))
        proxy.close(session)
        assert waiting.answered.is_set() and waiting.body["error"]["code"] == "session_ended"
        assert proxy.submit(session, ChatCall.of({"messages": USER})).status == 400


def test_a_shared_key_opens_a_session_for_each_name() -> None:
    with Proxy(shared_key="sk-mine") as proxy:
        assert proxy.find("sk-mine:a") is proxy.find("sk-mine:a")
        assert proxy.find("sk-mine:a") is not proxy.find("sk-mine")
        with pytest.raises(ApiError):
            proxy.find("sk-mineral:a")
