"""gpt-oss (Harmony): messages with a channel each; one whose header names a recipient `functions.NAME` is a call.

    <|channel|>analysis<|message|>...<|end|>
    <|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>{...}<|call|>

The recipient may stand before or after the channel: models write both. What the `final` channel says is the content;
the `analysis` channel is thinking.
"""

from __future__ import annotations

import re

from pipeline.generation.tool_calls.turn import MalformedCall, ParsedTurn, Schemas, ToolCall, call_of, loads, shown

MARKS = (("<|channel|>", "<|call|>"),)
_MESSAGE = re.compile(
    r"(?:<\|start\|>)?(?P<header>.*?)<\|message\|>(?P<body>.*?)(?:<\|end\|>|<\|call\|>|<\|return\|>|(?=<\|start\|>)|\Z)",
    re.DOTALL,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")


def parse(text: str, schemas: Schemas) -> ParsedTurn:
    answers, thoughts, calls, malformed = list[str](), list[str](), list[ToolCall](), list[str]()
    at = 0
    for message in _MESSAGE.finditer(text):
        at = message.end()
        header, body = message["header"], message["body"]
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        if recipient:
            try:
                calls.append(call_of({"name": recipient[1], "arguments": loads(body)}, "arguments"))
            except MalformedCall as exc:
                malformed.append(str(exc))
        elif channel and channel[1] == "analysis":
            thoughts.append(body)
        else:
            answers.append(body)
    rest = text[at:].strip()
    if rest and not (answers or calls or malformed):  # no message at all: text without marks is an answer
        if "<|channel|>" in rest or "to=functions" in rest:
            malformed.append(f"a message has no <|message|>: {shown(rest)}")
        else:
            answers.append(rest)
    return ParsedTurn("".join(answers).strip(), tuple(calls), tuple(malformed), "\n".join(thoughts))
