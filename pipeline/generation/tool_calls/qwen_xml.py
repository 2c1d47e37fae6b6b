"""Qwen3-Coder and Qwen 3.5, any number of calls, each tag on a line of its own:

    <tool_call> <function=NAME> <parameter=KEY> VALUE </parameter> </function> </tool_call>

Values are plain text; those of arguments that the schema does not call strings are read as JSON.
"""

from __future__ import annotations

import re

from pipeline.generation.tool_calls.turn import MalformedCall, ParsedTurn, Schemas, ToolCall, shown, typed

MARKS = (("<tool_call>", "<function="),)
_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)>(.*?)</parameter>\s*", re.DOTALL)


def parse(text: str, schemas: Schemas) -> ParsedTurn:
    calls, malformed = list[ToolCall](), list[str]()
    for block in _BLOCK.finditer(text):
        try:
            if not block[2]:
                raise MalformedCall("the call does not end with </tool_call>")
            calls.append(_call(block[1], schemas))
        except MalformedCall as exc:
            malformed.append(str(exc))
    return ParsedTurn(_BLOCK.sub("", text).strip(), tuple(calls), tuple(malformed))


def _call(block: str, schemas: Schemas) -> ToolCall:
    function = _FUNCTION.fullmatch(block)
    if function is None:
        raise MalformedCall(f"a call must be <function=NAME> ... </function>, found {shown(block.strip())}")
    name, body = function.groups()
    arguments, at = {}, 0
    while at < len(body.rstrip()):
        parameter = _PARAMETER.match(body, at)
        if parameter is None:
            raise MalformedCall(
                f"an argument must be <parameter=NAME> ... </parameter>, found {shown(body[at:].strip())}"
            )
        key, value = parameter.groups()
        arguments[key] = typed(value.removeprefix("\n").removesuffix("\n"), schemas, name, key)
        at = parameter.end()
    return ToolCall(name, arguments)
