"""Conversations and texts -> token ids to imitate, with a mask from the lengths of rendered prefixes.

A trained turn's prompt is what sampling would be given: the template's own rendering of all messages before it, with
what opens the assistant's turn. What follows is tokenised apart where the two would merge at the boundary ("\\n" and
"\\n\\n" are different tokens). Turns stay in one row as long as the longer conversation's rendering extends the ids
before it; where a template rewrites history (Qwen3 drops earlier thoughts) a new row begins.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import chat_template, columns
from pipeline.data.columns import Message, Row

TAG = r"<(?P<tag>[\w:]*(?:think|thought|reason)\w*)>"
OPENED = re.compile(rf"{TAG}\s*\Z", re.IGNORECASE)
CLOSED = re.compile(rf"{TAG}\s*</(?P=tag)>\s*\Z", re.IGNORECASE)
BEGINS_WITH_THOUGHT = re.compile(rf"\s*{TAG}", re.IGNORECASE)
IMITATE = "imitate"  # a column that formats set to False on rows that are judged bad


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Ids of one training row. trained: per completion id, whether it is learned from; the rest is context."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    kind: str


@dataclass(slots=True)
class Conversation:
    """A row's messages as templates read them. turns: indices of the messages to imitate."""

    messages: list[Message]
    tools: list[Row] | None
    turns: list[int] = field(default_factory=list)


class Renderer:
    """A tokenizer with the arguments of every rendering."""

    def __init__(self, tokenizer: Any, source: Prompts, stop_token_ids: Collection[int] = ()) -> None:
        self.tokenizer, self.kwargs = tokenizer, source.chat_kwargs
        self.stop_token_ids = frozenset(stop_token_ids) or frozenset({tokenizer.eos_token_id})
        self.left_out = Counter[str]()

    def prompt(self, messages: Sequence[Message], tools: list[Row] | None) -> list[int]:
        """What sampling is given. Raises ValueError with the template's words."""
        return chat_template.render(self.tokenizer, messages, kwargs=self.kwargs, tools=tools, answer=True)

    def answer(self, messages: Sequence[Message], tools: list[Row] | None, prompt_ids: Sequence[int]) -> list[int]:
        """Ids of the last message after the prompt's, the end token included and nothing after it.

        Raises ValueError where the template writes another prompt once it is answered.
        """
        full = chat_template.render(self.tokenizer, messages, kwargs=self.kwargs, tools=tools)
        if full[: len(prompt_ids)] == list(prompt_ids) and not BEGINS_WITH_THOUGHT.match(messages[-1]["content"]):
            return self.ended(full[len(prompt_ids) :])
        return self.ended(self.encode(self._answer_text(messages, tools)))

    def _answer_text(self, messages: Sequence[Message], tools: list[Row] | None) -> str:
        """What follows the prompt's text, in the first form of the answer that the template writes after it."""

        def text(messages: Sequence[Message], answer: bool = False) -> str:
            return chat_template.render_text(self.tokenizer, messages, kwargs=self.kwargs, tools=tools, answer=answer)

        *history, last = messages
        prompt, before = text(history, True), text(history)
        opener = prompt.removeprefix(before) if prompt.startswith(before) else ""
        opened, closed = OPENED.search(opener), CLOSED.search(opener)
        for turn in answer_forms(last, opened, closed):
            full = text([*history, turn])
            twice = opened and BEGINS_WITH_THOUGHT.search(full[len(prompt) :])
            if full.startswith(prompt) and not twice:
                self.left_out["thoughts that the prompt's empty thinking block has no room for"] += (
                    turn is not last and closed is not None
                )
                return full[len(prompt) :]
        if opened:
            tag, header = opened["tag"], before + opener[: opened.start()]
            full = text(messages)
            if full.startswith(f"{header}<{tag}>"):  # the template's empty block is written otherwise than it opens
                return full[len(header) + len(tag) + 2 :]
            if "tool_calls" not in last:
                return thought_and_answer(split_thought(last, tag), tag) + str(self.tokenizer.eos_token)
        raise ValueError("the chat template changes the prompt once it is answered; give prompt and completion as "
                         "text, or a template that only appends")  # fmt: skip

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def ended(self, ids: list[int]) -> list[int]:
        """Up to the last end token, which is never followed by anything when sampled; EOS is added where none is."""
        last = max((i for i, token in enumerate(ids) if token in self.stop_token_ids), default=None)
        return [*ids, self.tokenizer.eos_token_id] if last is None else ids[: last + 1]


def answer_forms(turn: Message, opened: re.Match[str] | None, closed: re.Match[str] | None) -> list[Message]:
    """The answer as it is; its thought in a field of its own; or, after an empty block in the prompt, without one."""
    if opened:
        return [turn, split_thought(turn, opened["tag"])]
    if not closed:
        return [turn]
    thoughtless = {k: v for k, v in split_thought(turn, closed["tag"]).items() if k not in chat_template.THOUGHTS}
    return [turn, thoughtless]


def split_thought(turn: Message, tag: str) -> Message:
    """The message with a thought that its content begins with in a field of its own."""
    thought, closed, answer = str(turn["content"]).partition(f"</{tag}>")
    if not closed or turn.get("reasoning_content"):
        return turn
    thought = thought.strip().removeprefix(f"<{tag}>").strip()
    return {**turn, "content": answer.lstrip(), "reasoning_content": thought, "thinking": thought}


def thought_and_answer(turn: Message, tag: str) -> str:
    """What follows a thinking tag that the prompt has opened: the thought, its end, the answer.

    Templates of the R1 kind open the tag for sampling and leave the thought out of every answer they render.
    """
    return f"{str(turn.get('reasoning_content', '')).strip()}\n</{tag}>\n\n{turn['content']}"


# --- rows -> conversations ------------------------------------------------------------------------------------------


def conversation(row: Mapping[str, Any], source: Prompts, prompt: Any, completion: Any) -> Conversation:
    """The whole of a chat row. prompt: text or messages; completion: text, messages, or None where it has none.

    Raises ValueError naming the column or message that cannot be read.
    """
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion or ())
    if source.system is not None and (not before or before[0].get("role") not in ("system", "developer")):
        before.insert(0, {"role": "system", "content": source.system})
    raw = [*before, *after]
    first = 0 if "messages" in row and source.prompt not in row else len(before)
    turns = [i for i, turn in enumerate(raw) if turn.get("role") == "assistant" and i >= first and is_imitated(turn)]
    return Conversation(chat_template.normal_messages(raw), columns.tools_of(row), turns)


def is_imitated(turn: Message) -> bool:
    """Unless the message is flagged: `train: false` (Axolotl), `weight: 0` (OpenAI).

    Raises ValueError for flags on parts of a message.
    """
    if turn.get("train_detail") or turn.get("training_detail"):
        raise ValueError("train_detail marks parts of a message, which is not supported; use a message of its own, or "
                         "segments, for what is not to be imitated")  # fmt: skip
    return not any(name in turn and turn[name] is not None and not turn[name] for name in chat_template.FLAGS)


def imitated_rows(
    conversation: Conversation, renderer: Renderer, *, train_on: str, barred: Container[str]
) -> list[Demonstration]:
    """One row as long as each rendering extends the one before it; a row for each turn after which it does not.

    barred: prompts that are held out. What is not trained on is counted in the renderer's `left_out`.
    """
    messages, tools = conversation.messages, conversation.tools
    turns = []
    for turn in conversation.turns:
        if not any(m["role"] in ("user", "tool") for m in messages[:turn]):
            renderer.left_out["assistant turns that answer nothing"] += 1
        elif barred and chat_template.text_of(messages[:turn]) in barred:
            renderer.left_out["turns whose prompt is held out"] += 1
        else:
            turns.append(turn)
    out: list[tuple[list[int], list[int], list[bool]]] = []
    for turn in turns[-1:] if train_on == "last" else turns:
        prompt_ids = renderer.prompt(messages[:turn], tools)
        answer = renderer.answer(messages[: turn + 1], tools, prompt_ids)
        if out and prompt_ids[: len(out[-1][0]) + len(out[-1][1])] == out[-1][0] + out[-1][1]:
            start, ids, trained = out[-1]
            between = prompt_ids[len(start) + len(ids) :]
            ids += between + answer
            trained += [False] * len(between) + [True] * len(answer)
        else:
            out.append((prompt_ids, list(answer), [True] * len(answer)))
    several = "several turns" if len(turns) > 1 and train_on == "all" else "one turn"
    kind = "conversation, " + ("rewritten by the template, a row per turn" if len(out) > 1 else several)
    kind += ", with tools" if tools else ""
    return [Demonstration(tuple(p), tuple(c), tuple(t), kind) for p, c, t in out]


def segment_row(segments: Sequence[Mapping[str, Any]], tokenizer: Any) -> Demonstration:
    """Texts that are learned from or not, tokenised apart; the end token is learned where the last one is.

    Where the first one is learned its first token is the prompt, unless the tokenizer has a BOS: nothing comes before
    it that it could be predicted from.
    """
    ids: list[int] = list(tokenizer("").input_ids)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    trained = [False] * len(ids)
    for segment in segments:
        own = list(tokenizer(segment["text"], add_special_tokens=False).input_ids)
        ids += own
        trained += [bool(segment["label"])] * len(own)
    if trained and trained[-1] and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
        trained.append(True)
    start = max(next((i for i, t in enumerate(trained) if t), len(ids)), 1)
    return Demonstration(tuple(ids[:start]), tuple(ids[start:]), tuple(trained[start:]), "text")


def summary(where: str, rows: int, examples: int, left_out: Counter[str]) -> str | None:
    """What is not trained on, in one line; None where everything is."""
    if not left_out:
        return None
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    return f"{where}: {rows} rows give {examples} examples; left out: {reasons}"


def refusal(where: str, origin: str, reason: Exception) -> ConfigError:
    return ConfigError([f"{where}: {origin}: {reason}"])
