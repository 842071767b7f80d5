"""Claude Agent SDK: Claude Code itself, with a tool of one's own."""

from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, query, tool


@tool("search", "Search the web.", {"q": str})
async def search(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": "three cities"}]}


async def run(question: str) -> str:
    options = ClaudeAgentOptions(
        mcp_servers={"web": create_sdk_mcp_server("web", tools=[search])}, allowed_tools=["mcp__web__search"],
        model="emulated", system_prompt="You research.", setting_sources=[],
    )  # fmt: skip
    said = ""
    async for message in query(prompt=question, options=options):
        said = getattr(message, "result", None) or said
    return said
