"""An MCP client: what its server says of its progress tells when the program returns: `python mcp_client.py`."""

import asyncio
import os
import sys

import openai
from mcp import ClientSession, StdioServerParameters, stdio_client

import agentserve_sdk as agentserve

agentserve.init()
URL = os.environ.get("AGENTSERVE_URL", "http://127.0.0.1:8400")
client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("AGENTSERVE_API_KEY", "none"))
SERVER = """
try: from mcp.server.mcpserver import MCPServer, Context
except ImportError: from mcp.server.fastmcp import FastMCP as MCPServer, Context
server = MCPServer("search")
@server.tool()
async def search(q: str, ctx: Context) -> str:
    await ctx.report_progress(1, 2)
    return f"nothing new about {q}"
server.run()
"""


@agentserve.workflow(name="research")
async def research(question: str) -> str:
    server = StdioServerParameters(command=sys.executable, args=["-c", SERVER])
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        found = await session.call_tool("search", {"q": question})  # its begin, progress and end are told
    model, asked = os.environ.get("MODEL", "emulated"), f"{question}\n\nFound: {found.content}"
    reply = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": asked}])
    return reply.choices[0].message.content or ""


print(asyncio.run(research("What is new?")))
