"""OpenAI's chat completions: requests -> what a generator is to do, samples -> responses. No I/O.

What the generator cannot do is refused with status 400 and the field's name; nothing is ignored that would change the
answer. The sampling distribution is the run's own (`temperature` and its like): it is what the loss assumes. A response
is a function of what was sampled alone: it holds no clock and no random id.
Source: OpenAI's API reference, `POST /v1/chat/completions`, as the Python client 3.52 sends it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.mistakes import nearest
from pipeline.data import chat_template
from pipeline.data.columns import Message, Row

MAX_CHOICES = 64
IGNORED = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
           "prompt_cache_retention")  # fmt: skip
OWN_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # the run's; reported if they differ
# fields that would change the answer -> the values that change nothing
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "top_logprobs": (0,),
    "response_format": ({"type": "text"},), "tool_choice": ("auto", "none"), "modalities": (["text"],),
}  # fmt: skip
READ = ("messages", "tools", "n", "max_tokens", "max_completion_tokens", "stop", "seed", "logprobs", "stream",
        "stream_options", "parallel_tool_calls")  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class ApiError(ValueError):
    """A request that is refused. code: as in OpenAI's errors; the limits of an episode are codes too."""

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request", param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> Row:
        kind = "authentication_error" if self.status == 401 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param or None, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A request for chat completions. max_tokens: None leaves it to the run. sampling: fields of OWN_SAMPLING."""

    messages: list[Message]
    tools: list[Row] | None
    n: int
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int | None
    logprobs: bool
    stream: bool
    stream_usage: bool
    one_tool_call: bool
    sampling: Mapping[str, Any]

    @classmethod
    def of(cls, body: Any) -> ChatCall:
        """Raises ApiError naming the field."""
        if not isinstance(body, Mapping):
            raise ApiError("the body must be a JSON object")
        sent = {key: value for key, value in body.items() if value is not None and key not in IGNORED}
        for key, value in sent.items():
            if key not in READ and key not in OWN_SAMPLING and key not in NEUTRAL:
                raise ApiError(f"{key}: not supported here{nearest(key, [*READ, *OWN_SAMPLING])}", param=key)
            if key in NEUTRAL and value not in NEUTRAL[key]:
                raise ApiError(f"{key}: {json.dumps(value)[:80]} is not supported here; leave it out", param=key)
        tools = _tools(sent.get("tools"))
        limits = [_count(sent, key) for key in ("max_tokens", "max_completion_tokens") if key in sent]
        options = sent.get("stream_options", {})
        return cls(
            _messages(sent.get("messages")), None if sent.get("tool_choice") == "none" else tools,
            _count(sent, "n", most=MAX_CHOICES) if "n" in sent else 1, min(limits) if limits else None,
            _stop(sent.get("stop", ())), _seed(sent.get("seed")), _flag(sent, "logprobs"), _flag(sent, "stream"),
            isinstance(options, Mapping) and bool(options.get("include_usage")),
            sent.get("parallel_tool_calls") is False, {key: sent[key] for key in OWN_SAMPLING if key in sent},
        )  # fmt: skip


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ApiError("messages: expected a list of at least one message", param="messages")
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise ApiError(f"messages: message {number} needs a role, one of {', '.join(ROLES)}", param="messages")
    try:
        return chat_template.normal_messages(value)
    except (ValueError, TypeError, AttributeError) as exc:
        raise ApiError(f"messages: {exc}", param="messages") from exc


def _tools(value: Any) -> list[Row] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise ApiError("tools: expected a list of functions", param="tools")
    for number, tool in enumerate(value, 1):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ApiError(f'tools: tool {number} must be {{"type": "function", "function": {{"name": ...}}}}',
                           param="tools")  # fmt: skip
    return [dict(tool) for tool in value]


def _count(sent: Mapping[str, Any], key: str, *, most: int | None = None) -> int:
    value = sent[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        upper = f", at most {most}" if most is not None else ""
        raise ApiError(
            f"{key}: expected a whole number of at least 1{upper}, found {json.dumps(value)[:80]}", param=key
        )
    return value


def _flag(sent: Mapping[str, Any], key: str) -> bool:
    value = sent.get(key, False)
    if not isinstance(value, bool):
        raise ApiError(f"{key}: expected true or false, found {json.dumps(value)[:80]}", param=key)
    return value


def _seed(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ApiError(f"seed: expected a whole number, found {json.dumps(value)[:80]}", param="seed")


def _stop(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word for word in words):
        raise ApiError("stop: expected text or a list of texts, none of them empty", param="stop")
    return tuple(words)


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One answer. content: without what follows a stop string. calls: OpenAI's `tool_calls`, [] without one.
    tokens: (text, log-prob in nats) of each sampled id."""

    content: str
    thinking: str
    calls: Sequence[Row]
    finished: bool
    tokens: Sequence[tuple[str, float]]

    @property
    def message(self) -> Row:
        content = None if self.calls and not self.content else self.content
        thinking = {"reasoning_content": self.thinking} if self.thinking else {}
        calls = {"tool_calls": list(self.calls)} if self.calls else {}
        return {"role": "assistant", "content": content, "refusal": None, **thinking, **calls}

    @property
    def finish_reason(self) -> str:
        return "length" if not self.finished else "tool_calls" if self.calls else "stop"


def response(call: ChatCall, name: str, choices: Sequence[ChatChoice], *, prompt_tokens: int) -> Row:
    """The body of a response. name: of the answer in its session."""
    completion_tokens = sum(len(choice.tokens) for choice in choices)
    return {
        "id": f"chatcmpl-{name}", "object": "chat.completion", "created": 0, "model": "policy",
        "choices": [{"index": index, "message": choice.message, "finish_reason": choice.finish_reason,
                     "logprobs": _logprobs(choice) if call.logprobs else None}
                    for index, choice in enumerate(choices)],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
                  "total_tokens": prompt_tokens + completion_tokens},
    }  # fmt: skip


def _logprobs(choice: ChatChoice) -> Row:
    return {"refusal": None, "content": [
        {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace")), "top_logprobs": []}
        for text, logprob in choice.tokens]}  # fmt: skip


def events(body: Mapping[str, Any], *, usage: bool) -> bytes:
    """A response as server-sent events: each answer is one chunk, for the generator returns whole samples."""
    common = {**{key: body[key] for key in ("id", "created", "model")}, "object": "chat.completion.chunk"}
    chunks: list[Row] = []
    for choice in body["choices"]:
        delta = dict(choice["message"])
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
        choice_delta = {"index": choice["index"], "delta": delta, "finish_reason": None, "logprobs": choice["logprobs"]}
        end = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"], "logprobs": None}
        chunks += [{**common, "choices": [choice_delta]}, {**common, "choices": [end]}]
    if usage:
        chunks.append({**common, "choices": [], "usage": body["usage"]})
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


__all__ = ["OWN_SAMPLING", "ApiError", "ChatCall", "ChatChoice", "events", "response"]
