"""Messages -> token ids through a model's chat template, with every failure reported in one line.

Rows are normalised to what templates read: content as text, arguments of tool calls as objects, no
empty keys. Templates differ in how they fail otherwise: content as a list of parts is dropped by one, printed as
Python by another; `tool_calls: []` raises in two of them; `tools: []` asks for a call of no tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pipeline.data.columns import Message, Row
from pipeline.distributed.notices import notice

# to templates that write the day (Llama 3.2, gpt-oss): the day that theirs give where no clock is
TODAY = date(2024, 7, 26)
FLAGS = ("train", "training", "weight")  # of a message: whether it is imitated; no template reads them
THOUGHTS = ("reasoning_content", "thinking")  # two names of one field, each read by some templates


def normal_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages as templates read them. Raises ValueError naming the message that has another shape."""
    return [_normal(turn, number) for number, turn in enumerate(messages, 1)]


def _normal(turn: Mapping[str, Any], number: int) -> Message:
    out = {k: v for k, v in turn.items() if v is not None and k not in FLAGS and not (k == "tool_calls" and not v)}
    out["role"] = {"developer": "system", "function": "tool"}.get(turn["role"], turn["role"])
    out["content"] = text_content(turn.get("content"), number)
    if "function_call" in out:  # OpenAI's older form, of one call
        out["tool_calls"] = [{"type": "function", "function": out.pop("function_call")}]
    if "tool_calls" in out:
        out["tool_calls"] = [_call(call, number) for call in out["tool_calls"]]
    thought = next((out[name] for name in THOUGHTS if out.get(name)), None)
    for name in THOUGHTS:
        out.pop(name, None)
        if thought is not None:
            out[name] = text_content(thought, number)
    return out


def text_content(content: Any, number: int) -> str:
    """A message's content as text; its text parts joined. Raises ValueError for a part that is no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError(f"message {number}: its content is {content!r}, not text; write it as text in quotes")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"message {number}: its content has a part of type {kind!r}; only text can be read")
        texts.append(text)
    return "".join(texts)


def _call(call: Any, number: int) -> Row:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"message {number}: a tool call must have a function with name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # as OpenAI sends them; templates would encode the text once more
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as exc:
            raise ValueError(f"message {number}: the arguments of {function['name']!r} are not JSON: {exc}") from exc
    if not isinstance(arguments, Mapping | None):
        raise ValueError(f"message {number}: the arguments of {function['name']!r} must be an object, found "
                         f"{type(arguments).__name__}")  # fmt: skip
    about = {key: value for key, value in call.items() if key in ("id", "type") and value is not None}
    return {"type": "function", **about, "function": {"name": function["name"], "arguments": dict(arguments or {})}}


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as people read them: a line each, calls as JSON."""
    lines = []
    for number, turn in enumerate(messages, 1):
        calls = turn.get("tool_calls") or []
        called = "".join(f" {json.dumps(_call(call, number)['function'], sort_keys=True)}" for call in calls)
        lines.append(f"{turn.get('role', '?')}: {text_content(turn.get('content'), number)}{called}")
    return "\n".join(lines)


def template_kwargs(tokenizer: Any, given: Mapping[str, Any]) -> Row:
    """Arguments of every rendering. A run that is resumed on another day has the same prompts."""
    out = dict(given)
    if "strftime_now" in str(tokenizer.chat_template):
        out.setdefault("strftime_now", TODAY.strftime)
    return out


def render(
    tokenizer: Any, messages: Sequence[Message], *, kwargs: Mapping[str, Any], tools: list[Row] | None = None,
    answer: bool = False,
) -> list[int]:  # fmt: skip
    """Token ids of normal messages. answer: with what opens the assistant's turn, as sampling needs it.

    Raises ValueError with the template's own words.
    """
    ids = _rendered(tokenizer, messages, kwargs, tools, answer, tokenize=True, return_dict=False)
    return [int(i) for i in ids]


def render_text(
    tokenizer: Any, messages: Sequence[Message], *, kwargs: Mapping[str, Any], tools: list[Row] | None = None,
    answer: bool = False,
) -> str:  # fmt: skip
    """The same as text."""
    return str(_rendered(tokenizer, messages, kwargs, tools, answer, tokenize=False))


def _rendered(
    tokenizer: Any, messages: Sequence[Message], kwargs: Mapping[str, Any], tools: list[Row] | None, answer: bool,
    **how: Any,
) -> Any:  # fmt: skip
    """In the first of the shapes that the template neither refuses nor leaves the calls out of."""
    if tokenizer.chat_template is None:
        raise ValueError("the row holds messages and the tokenizer has no chat template; set model.chat_template, or "
                         "give prompts as text")  # fmt: skip
    given = {**template_kwargs(tokenizer, kwargs), "add_generation_prompt": answer, **how}
    if tools and not writes_tools(tokenizer, given):
        notice("prompts: the chat template writes no tools: the model will not see the schemas of the tools column")
    calls = any("tool_calls" in turn for turn in messages)
    refusals = []
    shapes = SHAPES if writes_text(tokenizer, given) else SHAPES[::-1]
    for shape in shapes:
        try:
            out = tokenizer.apply_chat_template([shape(turn) for turn in messages], tools=tools or None, **given)
            if not calls or out != _without_calls(tokenizer, messages, shape, tools=tools or None, **given):
                return out
            refusals.append("it leaves tool calls out")
        except Exception as exc:  # templates are other people's programs, and fail as programs do
            refusals.append(" ".join(str(exc).split())[:200] or type(exc).__name__)
    raise ValueError(f"the chat template refuses it: {refusals[0]}")


def _without_calls(tokenizer: Any, messages: Sequence[Message], shape: Any, **how: Any) -> Any:
    """The same rendering had there been no calls; None where the template refuses that."""
    try:
        uncalled = [{k: v for k, v in shape(turn).items() if k != "tool_calls"} for turn in messages]
        return tokenizer.apply_chat_template(uncalled, **how)
    except Exception:  # then the calls were read
        return None


def _as_it_is(turn: Message) -> Message:
    return turn


def _arguments_as_text(turn: Message) -> Message:
    """DeepSeek's templates join arguments to text, and look for calls where the content is none."""
    if "tool_calls" not in turn:
        return turn
    calls = [{**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}}
             for c in turn["tool_calls"]]  # fmt: skip
    return {**turn, "content": turn["content"] or None, "tool_calls": calls}


def _content_as_parts(turn: Message) -> Message:
    """Templates of vision models may know no other content."""
    return {**turn, "content": [{"type": "text", "text": turn["content"]}]}


SHAPES = (_as_it_is, _arguments_as_text, _content_as_parts)
PROBE = {"type": "function", "function": {"name": "probe", "description": "", "parameters": {
    "type": "object", "properties": {"x": {"type": "string", "description": ""}}, "required": ["x"]}}}  # fmt: skip
_writes: dict[str, bool] = {}


def writes_text(tokenizer: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether content that is text is rendered: some templates of vision models write parts of a list alone."""
    key = f"text {tokenizer.chat_template}"
    if key not in _writes:
        try:
            question = [{"role": "user", "content": "xyzzy"}]
            _writes[key] = "xyzzy" in str(tokenizer.apply_chat_template(question, **{**kwargs, "tokenize": False}))
        except Exception:  # it wants more than a question: the rows themselves will show it
            _writes[key] = True
    return _writes[key]


def writes_tools(tokenizer: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the template's text differs where tools are given; True where it cannot be tried."""
    template = str(tokenizer.chat_template)
    if template not in _writes:
        question = [{"role": "user", "content": "x"}]
        how = {**kwargs, "tokenize": False}
        try:
            with_tools, without = (tokenizer.apply_chat_template(question, tools=t, **how) for t in ([PROBE], None))
            _writes[template] = bool(with_tools != without)
        except Exception:  # a template of another kind: the rows themselves will show it
            _writes[template] = True
    return _writes[template]
