"""Llama 3.1 and 3.2: the whole turn is {"name": ..., "parameters": {...}}, perhaps after <|python_tag|>.

One call per turn, as their template demands: what follows the object makes the call malformed. The tag may also be
followed by NAME.call(key="value"), as for the tools that are built into the model.
"""

from __future__ import annotations

import re

from pipeline.generation.tool_calls import pythonic
from pipeline.generation.tool_calls.turn import MalformedCall, ParsedTurn, Schemas, call_of, read_json, shown

MARKS = (("ipython", '"parameters": '),)
TAG = "<|python_tag|>"
_OBJECT = re.compile(r'\s*\{\s*"(name|type|function|parameters)"\s*:')
_BUILT_IN = re.compile(r"\s*([\w.]+)\.call(\(.*\))\s*", re.DOTALL)


def parse(text: str, schemas: Schemas) -> ParsedTurn:
    before, tag, body = text.partition(TAG)
    if not tag:
        before, body = "", text
        if not _OBJECT.match(text):
            return ParsedTurn(text.strip())
    try:
        if built_in := _BUILT_IN.fullmatch(body):
            call = pythonic.one_call(built_in[1] + built_in[2])
        else:
            value, end = read_json(body, 0)
            if body[end:].strip():
                raise MalformedCall(f"a turn holds one call and nothing after it, found {shown(body[end:].strip())}")
            call = call_of(value, "parameters", "arguments")
    except MalformedCall as exc:
        return ParsedTurn(before.strip(), (), (str(exc),))
    return ParsedTurn(before.strip(), (call,))
