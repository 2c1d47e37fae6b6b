"""Tools of a real MCP server over stdio, through the official client."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("mcp")

from verifiers.tools import Toolbox, ToolBroken, ToolError
from verifiers.tools._mcp import mcp_tool

SERVER = """
import os
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("counter")
total = 0

@server.tool()
def add(n: int) -> list[str]:
    "Add to the total."
    global total
    total += n
    return [f"total {total}", "second block"]

@server.tool()
def refuse(why: str) -> str:
    "Refuses."
    raise ToolError(f"no: {why}")

@server.tool()
def die() -> str:
    "Ends the server."
    os._exit(3)

server.run()
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("mcp") / "server.py"
    path.write_text(SERVER)
    return [sys.executable, str(path)]


def test_a_real_servers_tools_are_listed_and_called_and_episodes_have_processes_of_their_own(
    command: list[str],
) -> None:
    tool = mcp_tool("counter", command, timeout_s=20)
    one, two = Toolbox([(tool, {})]), Toolbox([(tool, {})])
    assert sorted(one.functions) == ["add", "die", "refuse"]
    schema = one.functions["add"].schema  # type: ignore[attr-defined]
    assert schema["function"]["parameters"]["properties"]["n"]["type"] == "integer"
    assert one.call("add", {"n": 2}) == "total 2\nsecond block"
    assert one.call("add", {"n": 3}) == "total 5\nsecond block"
    assert two.call("add", {"n": 1}).startswith("total 1")
    with pytest.raises(ToolError, match="no: because"):
        one.call("refuse", {"why": "because"})
    with pytest.raises(ToolError):
        one.call("add", {"n": "many"})
    with pytest.raises(ToolBroken, match="counter"):
        two.call("die", {})
    assert one.call("add", {"n": 0}).startswith("total 5"), "another episode's server is not affected"
    one.close()
    two.close()


def test_a_server_that_does_not_start_is_reported_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mcp\.x: .* does not start"):
        Toolbox([(mcp_tool("x", [str(tmp_path / "no-such-program")], timeout_s=5), {})])
    with pytest.raises(ValueError, match="give the server's command"):
        mcp_tool("x", [], timeout_s=5)
