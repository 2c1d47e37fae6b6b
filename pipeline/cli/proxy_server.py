"""whetstone proxy RUN_DIR: a run's policy behind OpenAI's chat completions, for agents that are still being written.

It answers as the `program:` block of a training run does, and appends the token ids and log-probs of every answer to a
file. Listens on 127.0.0.1 only; the key is WHETSTONE_SERVER_KEY, or a new one that is printed. KEY:NAME is a session of
its own.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.chat import Voice, number, open_voice
from pipeline.cli.commands import options
from pipeline.config.load import ConfigError
from pipeline.generation.generator import Sample
from pipeline.generation.openai_api import ApiError
from pipeline.generation.policy_calls import CallLimits, CallPlayer, Prepared, Recorded
from pipeline.generation.proxy import KEY_PREFIX, Proxy, ProxySession, Waiting
from pipeline.generation.server_key import SERVER_KEY
from pipeline.models import models

PORT = 8770
NO_LIMIT = 2**62


class Desk:
    """Answers the requests of all sessions, many in one batch, and records them."""

    def __init__(self, voice: Voice, to: Path | None) -> None:
        """Raises ConfigError without a chat template."""
        if voice.tokenizer.chat_template is None:
            raise ConfigError([f"proxy: the model at {voice.place} has no chat template, which renders the calls"])
        self.voice, self.to = voice, to
        self.stop_token_ids = models.end_ids(voice.tokenizer, voice.generator.model)
        config = voice.generator.model.config.get_text_config()
        limits = CallLimits(NO_LIMIT, NO_LIMIT, int(getattr(config, "max_position_embeddings", 0) or 4096))
        self.calls = CallPlayer(voice.tokenizer, voice.source, voice.sampling, self.stop_token_ids, limits,
                                where="proxy")  # fmt: skip
        self.recorded: dict[str, Recorded] = defaultdict(Recorded)

    def answer(self, taken: Sequence[tuple[ProxySession, Waiting]]) -> None:
        batch: list[tuple[str, Waiting, Prepared]] = []
        for session, waiting in taken:
            name = session.key.partition(":")[2]
            try:
                prepared = self.calls.prepare(self.recorded[name], waiting.call, (self.voice.seed, "proxy", name))
                if waiting.call.tools:
                    self.calls.format_of_calls()
            except (ApiError, ConfigError) as exc:
                waiting.refuse(exc if isinstance(exc, ApiError) else ApiError(str(exc), param="tools"))
                continue
            batch.append((name, waiting, prepared))
        requests = [request for _, _, prepared in batch for request in prepared.requests]
        drawn = self.voice.generator.sample(requests, self.voice.sampling, self.stop_token_ids) if requests else []
        start = 0
        for name, waiting, prepared in batch:
            samples = self.calls.cut(prepared.call, drawn[start : start + len(prepared.requests)])
            start += len(samples)
            recorded = self.recorded[name]
            body = self.calls.record(recorded, prepared, samples, name or "0")
            self._write(name, recorded.turns - 1, prepared, samples, body)
            waiting.answer(body)

    def _write(self, name: str, turn: int, prepared: Prepared, samples: Sequence[Sample], body: dict[str, Any]) -> None:
        if self.to is None:
            return
        with self.to.open("a", encoding="utf-8") as out:
            for choice, sample in zip(body["choices"], samples, strict=True):
                row = {"session": name, "turn": turn, "choice": choice["index"], "messages": prepared.call.messages,
                       "answer": choice["message"], "finish_reason": choice["finish_reason"],
                       "prompt_ids": list(prepared.requests[0].ids), "ids": list(sample.ids),
                       "logprobs": [round(x, 6) for x in sample.logprobs]}  # fmt: skip
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def serve_proxy(run: Path, words: Sequence[str]) -> None:
    """Serve until interrupted. Raises ConfigError."""
    asked = options("proxy", words)
    port = int(number(asked, "port", PORT, low=0))
    to = Path(asked["to"]) if "to" in asked else None
    if to is not None and not to.resolve().parent.is_dir():
        raise ConfigError([f"proxy: to={to}: there is no directory {to.parent}"])
    desk = Desk(open_voice(run, asked), to)
    key = os.environ.get(SERVER_KEY) or KEY_PREFIX + secrets.token_urlsafe(24)
    if ":" in key:
        raise ConfigError([f"proxy: {SERVER_KEY} holds a colon, which separates the key from a session's name"])
    try:
        serving = Proxy(port, shared_key=key)
    except (OSError, OverflowError) as exc:
        raise ConfigError([f"proxy: port={port} cannot be used ({exc}); name another, as port=8771"]) from None
    shown = f"${SERVER_KEY}" if os.environ.get(SERVER_KEY) else key
    with serving:
        print(f"{desk.voice.place} answers here, and to this machine only; Ctrl-C ends it.\n"
              f"export OPENAI_BASE_URL={serving.url} OPENAI_API_KEY={shown}", flush=True)  # fmt: skip
        try:
            while True:
                desk.answer(serving.take())
        except KeyboardInterrupt:
            print("", flush=True)


__all__ = ["Desk", "serve_proxy"]
