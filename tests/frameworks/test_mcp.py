"""MCP: a client's tool call, its progress and its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import agentserve_sdk as agentserve
import pytest

pytest.importorskip("mcp")
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

SERVER = """
import anyio
try:
    from mcp.server.mcpserver import MCPServer, Context
except ImportError:
    from mcp.server.fastmcp import FastMCP as MCPServer, Context
server = MCPServer("test")
@server.tool()
async def search(q: str, ctx: Context) -> str:
    for done in (1, 2, 3, 4):
        await anyio.sleep(0.02)
        await ctx.report_progress(done, 4)
    return "res"
server.run()
"""


async def test_a_tool_call_is_announced_with_its_progress(held: Any, tmp_path: Path) -> None:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    seen: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)

    params = StdioServerParameters(command=sys.executable, args=[str(path)])
    async with stdio_client(params) as streams, ClientSession(*streams) as session:
        await session.initialize()
        await session.call_tool("search", {"q": "outside of any program"})
        with agentserve.workflow("w"):
            result = await session.call_tool("search", {"q": "a secret"}, progress_callback=progress)
    assert "res" in str(result)
    program = held.gateway.only_program
    assert [(t.name, t.ended, t.status) for t in program.tools] == [("search", True, "succeeded")]
    assert seen == [1, 2, 3, 4], "the application's own callback is called all the same"
    hints = [e["in_ms"] for e in program.events if e["type"] == "hint"]
    assert len(hints) == 4
    assert hints[0] > hints[-1] == 0
    assert "secret" not in str(program.events)


def test_the_example_tells_its_tool_and_its_progress(held: Any) -> None:
    held.gateway._answer = lambda call: "Nothing."
    assert held.started("mcp_client.py") == "Nothing.\n"
    program = held.gateway.only_program
    assert (program.declared["workflow"], program.status) == ("research", "succeeded")
    assert [(t.name, t.ended, t.status) for t in program.tools] == [("search", True, "succeeded")]
    assert [call.program_id for call in held.gateway.calls] == [program.id]
    assert any(e["type"] == "hint" for e in program.events)
