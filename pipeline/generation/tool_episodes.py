"""Episodes with tools: the policy answers, its calls are run, their results go through the chat template, it goes on.

The prompt of every turn is the template's own rendering of all messages and tool schemas. What was sampled is kept as
the ids that were sampled. As long as the rendering of the longer conversation extends them, an episode is one Rollout,
with `sampled` False on what the template wrote between the turns: tool results get no loss, no KL, no entropy, no GAE
step. Where the template rewrites history (it drops earlier thinking, or writes a call differently from the policy) a
new row begins, numbered by `turn`: each row is then exactly what was sampled from what the policy read.

An environment that answers whole turns gets each of them, calls included, and returns what the policy reads next.

How an episode ends (`ended_by`): `answer`, a turn without a call; `environment`, the environment ended it; `length`, a
turn longer than sampling.max_tokens; `max_turns`, `max_tokens`, `context`, the limits of the episode. `tool_timeout`,
`tool_broken`, `template` are faults: the episode has no score. A call that is malformed, wrong or raises is reported to
the policy, which goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config.schema import Prompts, Sampling, Tools
from pipeline.data import chat_template, encoding
from pipeline.data.columns import Message, Row
from pipeline.data.completion_text import completion_text, opened_by
from pipeline.data.conversations import Renderer
from pipeline.data.tool_schemas import ToolSet
from pipeline.generation.episode_rows import EpisodeRow, rollouts_of
from pipeline.generation.generator import Generator, Request, Sample, sample_until_stop
from pipeline.generation.tool_calls import ParsedTurn, format_of, parse_turn, recognised_format
from pipeline.generation.tool_runs import Called, ToolRuns
from pipeline.records import Prompt, Rollout
from pipeline.seeds import derive
from verifiers.tools import Exchange, Toolbox

# a tool for templates to render, where the tools of a run are known only when its environment starts
PROBE: Row = {"type": "function", "function": {"name": "probe", "description": "Probe.", "parameters": {
    "type": "object", "properties": {}}}}  # fmt: skip
FAULTS = ("tool_timeout", "tool_broken", "template")


@dataclass(slots=True)
class _ToolEpisode:
    start: Prompt
    number: int  # among all episodes of the call
    sample: int
    messages: list[Message]
    tools: list[Row] | None
    first_message: int  # the first that the policy wrote
    rows: list[EpisodeRow] = field(default_factory=list)
    between: tuple[int, ...] = ()  # ids that the template wrote after the last turn, of a row that goes on
    prompt_ids: tuple[int, ...] = ()  # of the next turn
    turns: int = 0
    ended_by: str = ""
    fault: str = ""
    answer: str = ""
    calls: int = 0
    tool_errors: int = 0
    malformed_calls: int = 0
    reward: float | None = None

    def end(self, how: str, fault: str = "") -> None:
        self.ended_by, self.fault = how, fault


class ToolPlayer:
    """Plays episodes with the tools of a run, on one tokenizer and its chat template."""

    def __init__(
        self, tools: ToolSet, settings: Tools, source: Prompts, tokenizer: Any, stop_token_ids: frozenset[int], *,
        context: int,
    ) -> None:  # fmt: skip
        """source: the run's prompts. context: of the engine, in tokens. Raises ConfigError for an unknown format."""
        self.tools, self.settings, self.source, self.tokenizer = tools, settings, source, tokenizer
        self.stop_token_ids, self.context = stop_token_ids, context
        unknown_is_fine = tools.answers_turns  # its environment may offer no tool
        self.format = (recognised_format(tokenizer.chat_template or "") if unknown_is_fine and settings.format is None
                       else format_of(tokenizer.chat_template, settings.format))  # fmt: skip
        self.renderer = Renderer(tokenizer, source, stop_token_ids)
        self.one_call = not self._renders_two_calls()

    def play(
        self, generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, *, samples: int,
        key: tuple[int | str, ...], on_done: Callable[[int, Rollout], None] | None = None,
    ) -> list[Rollout]:  # fmt: skip
        """`samples` episodes of each prompt, prompt-major, the rows of an episode adjacent.

        The seed of a turn is a function of (key, prompt index, sample, turn), whatever else is played with it.
        on_done: gets (number of the episode, its last row) when all are played.
        """
        episodes = [self._begin(prompt, n * samples + sample, sample)
                    for n, prompt in enumerate(prompts) for sample in range(samples)]  # fmt: skip
        runs: ToolRuns[_ToolEpisode] = ToolRuns(self.tools, len(episodes), self.settings)
        self._reset(episodes, runs)
        for turn in range(self.settings.max_turns):
            live = [one for one in episodes if not one.ended_by]
            if not live:
                break
            self._sample(generator, live, sampling, turn, samples, key)
            last = turn + 1 == self.settings.max_turns
            if self.tools.answers_turns:
                self._exchange(live, runs, last=last)
            else:
                self._run_calls([one for one in live if not one.ended_by], runs, last=last)
        for one, outcome in runs.each([e for e in episodes if not e.fault], lambda box, _: box.reward()):
            one.reward = outcome.value
            if outcome.fault:
                one.end(outcome.fault, outcome.text)
        runs.close()
        by_episode = [self._rollouts(one) for one in episodes]
        if on_done is not None:
            for one, rows in zip(episodes, by_episode, strict=True):
                on_done(one.number, rows[-1])
        return [row for rows in by_episode for row in rows]

    # --- the start ------------------------------------------------------------------------------------------------

    def _begin(self, prompt: Prompt, number: int, sample: int) -> _ToolEpisode:
        chat = encoding.chat_of(prompt.row, self.source, label=prompt.label)
        return _ToolEpisode(
            prompt, number, sample, chat.messages, chat.tools, len(chat.messages), prompt_ids=prompt.ids
        )

    def _reset(self, episodes: Sequence[_ToolEpisode], runs: ToolRuns[_ToolEpisode]) -> None:
        """Start the tools with each episode's task. What they return goes to the end of the last user's message."""
        for one, outcome in runs.each(episodes, lambda box, one: box.reset(one.start.task)):
            if outcome.fault:
                one.end(outcome.fault, f"reset: {outcome.text}")
            elif isinstance(outcome.value, Exchange):
                self._open(one, outcome.value)
            elif outcome.value:
                last = next((m for m in reversed(one.messages) if m["role"] == "user"), None)
                if last is None:
                    one.messages.append({"role": "user", "content": outcome.value})
                    one.first_message += 1
                else:
                    last["content"] += outcome.value
                self._render_start(one)
            if not one.ended_by and self._room(one, 1)[0] < 1:
                one.end("context")

    def _open(self, one: _ToolEpisode, opening: Exchange) -> None:
        """Begin with the conversation of an environment that answers turns, in place of the row's prompt."""
        if not opening.messages:
            one.end("tool_broken", "reset: the environment ended before the first turn")
            return
        one.messages = [dict(message) for message in opening.messages]
        one.tools = [dict(tool) for tool in opening.tools or ()] or None
        one.first_message = len(one.messages)
        self._render_start(one)

    def _render_start(self, one: _ToolEpisode) -> None:
        try:
            ids = tuple(self.renderer.prompt(one.messages, one.tools))
        except ValueError as exc:
            one.end("template", str(exc))
            return
        one.start = replace(one.start, ids=ids, text=chat_template.text_of(one.messages))
        one.prompt_ids = ids

    # --- one turn -------------------------------------------------------------------------------------------------

    def _sample(
        self, generator: Generator, live: Sequence[_ToolEpisode], sampling: Sampling, turn: int, samples: int,
        key: tuple[int | str, ...],
    ) -> None:  # fmt: skip
        requests, limits = [], []
        for one in live:
            limit, name = self._room(one, sampling.max_tokens)
            requests.append(Request(one.prompt_ids, derive(*key, one.number // samples, one.sample, turn), limit))
            limits.append(name)
        drawn = sample_until_stop(generator, requests, sampling, self.stop_token_ids, self.tokenizer)
        for one, sample, limit_name in zip(live, drawn, limits, strict=True):
            self._take(one, sample, limit_name)

    def _room(self, one: _ToolEpisode, max_tokens: int) -> tuple[int, str]:
        """(most tokens of the next turn, the limit that it is). max_tokens: of one turn."""
        used = len(one.prompt_ids) - len(one.start.ids)
        rooms = [(max_tokens, "length"), (self.settings.max_tokens - used, "max_tokens"),
                 (self.context - len(one.prompt_ids), "context")]  # fmt: skip
        return min(rooms, key=lambda room: room[0])

    def _take(self, one: _ToolEpisode, sample: Sample, limit_name: str) -> None:
        """Append what was sampled to the row that it continues."""
        if not one.rows or one.rows[-1].all_ids + one.between != one.prompt_ids:
            one.rows.append(EpisodeRow(one.prompt_ids))
        else:
            one.rows[-1].add(one.between, None)
        row = one.rows[-1]
        row.add(sample.ids, sample.logprobs)
        row.finished = sample.finished
        one.turns += 1
        one.answer = completion_text(self.tokenizer, sample.ids, one.prompt_ids)
        if not sample.finished:
            one.end(limit_name)
            one.messages.append({"role": "assistant", "content": one.answer})

    def _run_calls(self, live: Sequence[_ToolEpisode], runs: ToolRuns[_ToolEpisode], *, last: bool) -> None:
        """Read the calls of each turn, run them, and render the next prompts; an answer ends its episode."""
        turns: dict[int, ParsedTurn] = {}
        calling = []
        for one in live:
            turn = turns[one.number] = self._parsed(one)
            one.malformed_calls += len(turn.malformed)
            if self.format == "harmony":
                one.answer = turn.content
            if turn.calls or turn.malformed:
                calling.append(one)
            else:
                one.end("answer")
                one.messages.append(_policy_message(turn))
        if last:
            for one in calling:
                one.end("max_turns")
                one.messages.append(_policy_message(turns[one.number]))
            return
        for one, outcome in runs.each(calling, lambda box, one: _called(box, turns[one.number]),
                                      jobs=lambda one: len(turns[one.number].calls)):  # fmt: skip
            if outcome.fault:
                one.messages.append(_policy_message(turns[one.number]))
                one.end(outcome.fault, outcome.text)
                continue
            results, done = outcome.value
            self._answer_calls(one, turns[one.number], results)
            if done:
                one.end("environment")
            else:
                self._render_next(one)

    def _exchange(self, live: Sequence[_ToolEpisode], runs: ToolRuns[_ToolEpisode], *, last: bool) -> None:
        """Pass each turn, also one that was cut off, to an environment that answers turns, and render what follows."""
        for one in live:
            if one.ended_by:
                continue  # cut off: its message is there already
            turn = self._parsed(one)
            one.messages.append(_policy_message(turn, number=one.calls))
            one.malformed_calls += len(turn.malformed)
            one.calls += len(turn.calls)
        for one, outcome in runs.each(live, lambda box, one: box.take_turn(one.messages[-1], finished=not one.ended_by),
                                      jobs=lambda one: len(one.messages[-1].get("tool_calls", ()))):  # fmt: skip
            if outcome.fault:
                one.end(outcome.fault, outcome.text)
            elif not one.ended_by:
                self._continue(one, outcome.value, last=last)

    def _continue(self, one: _ToolEpisode, exchange: Exchange, *, last: bool) -> None:
        """Append the environment's answer to a turn."""
        if exchange.messages is None:
            one.end("environment")
            return
        replies: list[Message] = [self._cut_message(message) for message in exchange.messages]
        one.messages = [*one.messages, *replies] if exchange.continues else replies
        one.first_message = min(one.first_message, len(one.messages))
        if exchange.tools is not None:
            one.tools = [dict(tool) for tool in exchange.tools] or None
        if last:
            one.end("max_turns")
        else:
            self._render_next(one)

    def _cut_message(self, message: Mapping[str, Any]) -> Message:
        content = message.get("content")
        return {**message, "content": self._cut(content) if isinstance(content, str) else content or ""}

    def _parsed(self, one: _ToolEpisode) -> ParsedTurn:
        ids = one.rows[-1].ids
        turn_ids = ids[len(one.prompt_ids) - len(one.rows[-1].prompt_ids) :]
        text = self.tokenizer.decode(turn_ids[:-1] if turn_ids[-1] in self.stop_token_ids else turn_ids,
                                     skip_special_tokens=False)  # fmt: skip
        opened = opened_by(self.tokenizer, one.prompt_ids)
        if self.format is None or not one.tools:
            return ParsedTurn(opened + text)
        turn = parse_turn(opened + text, self.format, one.tools)
        if self.one_call and len(turn.calls) > 1:
            extra = f"only one call fits into a turn; {len(turn.calls) - 1} more were not run"
            return replace(turn, calls=turn.calls[:1], malformed=(*turn.malformed, extra))
        return turn

    def _answer_calls(self, one: _ToolEpisode, turn: ParsedTurn, results: Sequence[Called]) -> None:
        """Append the policy's message and the tools'."""
        one.messages.append(_policy_message(turn, number=one.calls))
        texts = [self._cut(r.text if r.fine else f"Error: {r.text}") for r in results]
        one.tool_errors += sum(not r.fine for r in results)
        unread = "\n".join(f"Error: the tool call could not be read: {reason}" for reason in turn.malformed)
        if unread:
            texts = [*texts[:-1], f"{texts[-1]}\n{unread}"] if texts else [unread]
        calls = one.messages[-1].get("tool_calls", [])
        for index, text in enumerate(texts):
            about = {"name": calls[index]["function"]["name"], "tool_call_id": calls[index]["id"]} if calls else {}
            one.messages.append({"role": "tool", "content": text, **about})
        one.calls += len(turn.calls)

    def _cut(self, text: str) -> str:
        most = self.settings.max_output_chars
        text = text.encode("utf-8", "replace").decode()  # a tool's lone surrogates cannot be tokenized
        return text if len(text) <= most else f"{text[:most]}\n[{len(text) - most} more characters]"

    def _render_next(self, one: _ToolEpisode) -> None:
        """The next prompt: what was read and sampled, and what the template writes after it; or, where the template
        writes another history, its rendering, which begins a new row."""
        kept = one.prompt_ids + tuple(one.rows[-1].ids[len(one.prompt_ids) - len(one.rows[-1].prompt_ids) :])
        try:
            rendered = tuple(self._rendered(one))
        except ValueError as exc:
            one.end("template", str(exc))
            return
        if rendered[: len(kept)] == kept:
            one.between, one.prompt_ids = rendered[len(kept) :], rendered
        elif (rest := self._rest_of_text(one, kept)) is not None:
            one.between = tuple(self.renderer.encode(rest))
            one.prompt_ids = kept + one.between
        else:
            one.between, one.prompt_ids = (), rendered
        limit, name = self._room(one, 1)
        if limit < 1:
            one.end(name)

    def _rendered(self, one: _ToolEpisode) -> list[int]:
        """Raises ValueError. Templates that refuse a result without a call get it as the user's message."""
        try:
            return self.renderer.prompt(one.messages, one.tools)
        except ValueError:
            if one.messages[-1]["role"] != "tool" or "tool_call_id" in one.messages[-1]:
                raise
            one.messages[-1] = {"role": "user", "content": one.messages[-1]["content"]}
            return self.renderer.prompt(one.messages, one.tools)

    def _rest_of_text(self, one: _ToolEpisode, kept: Sequence[int]) -> str | None:
        """What the template writes after the text of the kept ids, which may be tokenized differently; None if it
        writes another text before it."""
        full = chat_template.render_text(self.tokenizer, one.messages, kwargs=self.source.chat_kwargs, tools=one.tools,
                                         answer=True)  # fmt: skip
        text = self.tokenizer.decode(list(kept), skip_special_tokens=False)
        return full[len(text) :] if full.startswith(text) else None

    def _renders_two_calls(self) -> bool:
        """Whether the template writes two calls in one turn, and both of their results."""
        names = [str(s["function"]["name"]) for s in self.tools.schemas or [PROBE]] * 2
        turn: Message = {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "id": f"call{n:05}", "function": {"name": name, "arguments": {}}}
            for n, name in enumerate(names[:2])]}  # fmt: skip
        results = [{"role": "tool", "content": f"result {n}", "name": name, "tool_call_id": f"call{n:05}"}
                   for n, name in enumerate(names[:2])]  # fmt: skip
        try:
            text = chat_template.render_text(
                self.tokenizer, [{"role": "user", "content": "?"}, turn, *results], kwargs=self.source.chat_kwargs,
                tools=self.tools.schemas or [PROBE],
            )  # fmt: skip
            single = chat_template.render_text(
                self.tokenizer, [{"role": "user", "content": "?"}, {**turn, "tool_calls": turn["tool_calls"][:1]},
                                 *results], kwargs=self.source.chat_kwargs, tools=self.tools.schemas or [PROBE],
            )  # fmt: skip
        except ValueError:
            return False
        return text != single and "result 1" in text

    # --- the end --------------------------------------------------------------------------------------------------

    def _rollouts(self, one: _ToolEpisode) -> list[Rollout]:
        """The rows of an episode; the last one has the whole conversation."""
        if not one.rows:  # a fault before the first turn
            one.rows.append(EpisodeRow(one.prompt_ids))
        one.ended_by = one.ended_by or "max_turns"
        conversation = one.messages[one.first_message :]
        record: dict[str, Any] = {
            "answer": one.answer, "ended_by": one.ended_by, "fault": one.fault, "turns": one.turns, "calls": one.calls,
            "tool_errors": one.tool_errors, "malformed_calls": one.malformed_calls, "reward": one.reward,
            "messages": conversation,
        }  # fmt: skip
        text = chat_template.text_of(conversation) if one.turns > 1 else ""
        return rollouts_of(one.rows, one.start, sample=one.sample, tokenizer=self.tokenizer, text=text, record=record)


def _policy_message(turn: ParsedTurn, *, number: int = 0) -> Message:
    """The policy's turn as a message. Its calls are numbered on from `number`, in nine characters as Mistral wants."""
    calls = [
        {"type": "function", "id": f"call{n:05}", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for n, call in enumerate(turn.calls, number)
    ]
    thoughts = dict.fromkeys(chat_template.THOUGHTS, turn.thinking) if turn.thinking else {}
    content = "" if calls and thoughts else turn.content
    if turn.malformed and not calls:
        content = content or "(a tool call that could not be read)"
    return {"role": "assistant", "content": content, **thoughts, **({"tool_calls": calls} if calls else {})}


def _called(box: Toolbox, turn: ParsedTurn) -> tuple[list[Called], bool]:
    """(what the calls of a turn gave, whether the environment has ended the episode)."""
    return [Called.of(box, call.name, call.arguments) for call in turn.calls], box.done


__all__ = ["FAULTS", "ToolPlayer"]
