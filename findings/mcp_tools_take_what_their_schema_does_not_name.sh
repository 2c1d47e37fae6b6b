#!/usr/bin/env bash
# mcp 2.3.0, a tool made of a typed Python function with MCPServer, called over an in-memory client.
#
# Seen: add(a: int, b: int = 10) called with a and a misspelled "B": 7 returns a + 10; the unknown argument is dropped, and the
# published schema does not forbid it. a = "5" and a = true are taken for 5 and 1. list[int] takes the text "[1,2]".
# x: str | None takes "null" for None, "5" for the text 5, and refuses the text "[1]", which it decodes to a list first.
# The text of an exception does not reach the client: "Error executing tool boom".
# FastMCP, the class of version 1, is gone: MCPServer.
# From memory one would say: arguments are checked against the schema, so an unknown name or a text for a number is an
# error, a text stays a text, and the model reads why its call failed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mcp==2.3.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import asyncio

from mcp import Client
from mcp.server.mcpserver import MCPServer

server = MCPServer("demo")


@server.tool()
def add(a: int, b: int = 10) -> int:
    return a + b


@server.tool()
def total(xs: list[int]) -> int:
    return sum(xs)


@server.tool()
def text(x: str | None = None) -> str:
    return repr(x)


@server.tool()
def boom() -> int:
    raise ValueError("the third row is empty")


async def main():
    async with Client(server) as client:
        schema = (await client.list_tools()).tools[0].input_schema

        async def said(name, **arguments):
            result = await client.call_tool(name, arguments)
            return "error" if result.is_error and name != "boom" else result.content[0].text

        seen = [await said("add", a=5, B=7), await said("add", a="5"), await said("add", a=True),
                await said("total", xs="[1,2]"), await said("text", x="null"), await said("text", x="5"),
                await said("text", x="[1]"), await said("boom")]
    print(schema, seen)
    assert "additionalProperties" not in schema
    assert seen == ["15", "15", "11", "3", "None", "'5'", "error", "Error executing tool boom"], seen


asyncio.run(main())
PYTHON
