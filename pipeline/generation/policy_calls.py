"""Chat calls of a program -> requests of the generator, and its samples -> training rows and responses.

The prompt of a call is the chat template's own rendering of its messages and tool schemas; where it extends what the
session has already read and sampled, the sampled ids stay as they were sampled (episode_rows.py). Tool calls in an
answer are read in the model's own format, as in episodes with tools; one that cannot be read stays in the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.schema import Prompts, Sampling
from pipeline.data import chat_template
from pipeline.data.columns import Message, Row
from pipeline.data.completion_text import completion_text, opened_by
from pipeline.data.conversations import Renderer
from pipeline.distributed.notices import notice
from pipeline.generation.episode_rows import EpisodeRow, continued
from pipeline.generation.generator import Request, Sample, cut_at_stop
from pipeline.generation.openai_api import ApiError, ChatCall, ChatChoice, response
from pipeline.generation.tool_calls import ParsedTurn, format_of, parse_turn, recognised_format
from pipeline.seeds import derive


@dataclass(frozen=True, slots=True)
class CallLimits:
    """turns: most calls of a session. tokens: most sampled in it. context: most of a call's prompt and answer."""

    turns: int
    tokens: int
    context: int


@dataclass(slots=True)
class Recorded:
    """What a session has sampled. limit: the limit that refused a call, "" if none did. answer: text of the last turn.

    messages: the conversation as a person reads it; a call that does not go on with the last one is written in full.
    """

    rows: list[EpisodeRow] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: int = 0
    sampled_tokens: int = 0
    calls: int = 0
    malformed_calls: int = 0
    answer: str = ""
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that can be sampled. row: the row that it continues; None begins one."""

    call: ChatCall
    rendered: tuple[int, ...]
    row: EpisodeRow | None
    between: tuple[int, ...]
    requests: tuple[Request, ...]


class CallPlayer:
    """Renders calls and records their answers, on one tokenizer and its chat template."""

    def __init__(
        self, tokenizer: Any, source: Prompts, sampling: Sampling, stop_token_ids: frozenset[int],
        limits: CallLimits, *, format_name: str | None = None, where: str = "program",
    ) -> None:  # fmt: skip
        self.tokenizer, self.sampling, self.limits = tokenizer, sampling, limits
        self.stop_token_ids, self.format_name, self.where = stop_token_ids, format_name, where
        self.kwargs = source.chat_kwargs
        self.in_channels = recognised_format(tokenizer.chat_template or "") == "harmony"
        self.renderer = Renderer(tokenizer, source, stop_token_ids)

    def prepare(self, session: Recorded, call: ChatCall, key: tuple[int | str, ...]) -> Prepared:
        """The requests of a call, seeded by (key, turn, choice, the call's own seed).

        Raises ApiError if the template refuses the messages or a limit is reached; the limit is recorded.
        """
        self._check_sampling(call)
        try:
            rendered = tuple(self.renderer.prompt(call.messages, call.tools))
        except ValueError as exc:
            raise ApiError(str(exc), code="chat_template", param="messages") from exc
        prompt = continued(session.rows, rendered, lambda: self._text(call), self.tokenizer, self.renderer.encode)
        most = self._room(session, call, len(prompt.prompt_ids))
        own = () if call.seed is None else (call.seed,)
        seeds = [derive(*key, session.turns, choice, *own) for choice in range(call.n)]
        requests = tuple(Request(prompt.prompt_ids, seed, most) for seed in seeds)
        return Prepared(call, rendered, prompt.row, prompt.between, requests)

    def _check_sampling(self, call: ChatCall) -> None:
        for name, value in call.sampling.items():
            own = getattr(self.sampling, name)
            if value != own:
                notice(f"{self.where}: the program asks for {name} {value}; every call is sampled with the run's "
                       f"sampling.{name}, {own}")  # fmt: skip

    def _text(self, call: ChatCall) -> str:
        return chat_template.render_text(
            self.tokenizer, call.messages, kwargs=self.kwargs, tools=call.tools, answer=True
        )

    def _room(self, session: Recorded, call: ChatCall, prompt_tokens: int) -> int:
        """Most tokens of each answer. Raises ApiError, and records which limit leaves none."""
        if session.turns >= self.limits.turns:
            raise self._limited(session, "max_turns", f"the episode has had its {self.limits.turns} calls")
        left = (self.limits.tokens - session.sampled_tokens) // call.n
        if left < 1:
            raise self._limited(session, "max_tokens", f"the episode has had its {self.limits.tokens} sampled tokens")
        room = self.limits.context - prompt_tokens
        if room < 1:
            raise self._limited(session, "context", f"the prompt has {prompt_tokens} tokens and the engine's context "
                                f"{self.limits.context}")  # fmt: skip
        return min(left, room, self.sampling.max_tokens, call.max_tokens or self.sampling.max_tokens)

    def _limited(self, session: Recorded, limit: str, reason: str) -> ApiError:
        session.limit = session.limit or limit
        return ApiError(reason, code=limit)

    def record(self, session: Recorded, prepared: Prepared, samples: Sequence[Sample], name: str) -> Row:
        """Append the samples to the session's rows, and return the response. name: of the session."""
        call, prompt_ids = prepared.call, prepared.requests[0].ids
        self._append_read(session, call)
        choices = []
        for number, sample in enumerate(self.cut(call, samples)):
            if number == 0 and prepared.row is not None:
                row = prepared.row
                row.add(prepared.between, None)
            else:
                session.rows.append(row := EpisodeRow(prompt_ids))
            row.add(sample.ids, sample.logprobs)
            row.finished = sample.finished
            session.sampled_tokens += len(sample.ids)
            choices.append(self._choice(session, call, sample, prompt_ids))
            session.messages.append(_as_message(choices[-1]))
        session.answer = choices[0].content
        session.turns += 1
        return response(call, f"{name}-{session.turns - 1}", choices, prompt_tokens=len(prompt_ids))

    def cut(self, call: ChatCall, samples: Sequence[Sample]) -> list[Sample]:
        """Samples up to the first stop string of the run or of the call."""
        stop = [*self.sampling.stop, *call.stop]
        return [cut_at_stop(sample, stop, self.tokenizer) for sample in samples] if stop else list(samples)

    def _append_read(self, session: Recorded, call: ChatCall) -> None:
        """The call's messages after those that the transcript already ends with."""
        written = [_comparable(message) for message in session.messages]
        read = [_comparable(message) for message in call.messages]
        known = next((n for n in range(min(len(written), len(read)), 0, -1) if written[-n:] == read[:n]), 0)
        session.messages += call.messages[known:]

    def _choice(self, session: Recorded, call: ChatCall, sample: Sample, prompt_ids: tuple[int, ...]) -> ChatChoice:
        ids = sample.ids[:-1] if sample.ids and sample.ids[-1] in self.stop_token_ids else sample.ids
        text = completion_text(self.tokenizer, ids, prompt_ids)
        turn = ParsedTurn(text)
        if sample.finished and (call.tools or self.in_channels):
            raw = self.tokenizer.decode(list(ids), skip_special_tokens=False)
            turn = parse_turn(opened_by(self.tokenizer, prompt_ids) + raw, self.format_of_calls(), call.tools or [])
            session.malformed_calls += len(turn.malformed)
            if not turn.calls:
                turn = ParsedTurn(text if turn.malformed or not turn.thinking else turn.content, (), (), turn.thinking)
        kept = turn.calls[:1] if call.one_tool_call else turn.calls
        calls = [{"type": "function", "id": f"call{session.calls + number:05}",
                  "function": {"name": one.name, "arguments": json.dumps(dict(one.arguments), ensure_ascii=False)}}
                 for number, one in enumerate(kept)]  # fmt: skip
        session.calls += len(calls)
        content = turn.content
        for word in (*self.sampling.stop, *call.stop):
            content = content.partition(word)[0]
        tokens = [(self.tokenizer.decode([i], skip_special_tokens=False), logprob)
                  for i, logprob in zip(sample.ids, sample.logprobs, strict=True)]  # fmt: skip
        return ChatChoice(content, turn.thinking, calls, sample.finished, tokens)

    def format_of_calls(self) -> str:
        """Raises ConfigError where the template writes calls in no known format."""
        return format_of(self.tokenizer.chat_template, self.format_name, where=f"{self.where}.format")


def _as_message(choice: ChatChoice) -> Message:
    """The answer as `normal_messages` would give it back."""
    sent = {key: value for key, value in choice.message.items() if key != "refusal"}
    return chat_template.normal_messages([sent])[0]


def _comparable(message: Message) -> tuple[Any, ...]:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return message["role"], str(message["content"]).strip(), calls


__all__ = ["CallLimits", "CallPlayer", "Prepared", "Recorded"]
