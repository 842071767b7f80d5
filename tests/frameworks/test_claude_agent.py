"""Claude Agent SDK: the environment that it gives to Claude Code, and hooks that tell of tools."""

from __future__ import annotations

from typing import Any

import agentserve_sdk as agentserve
import pytest
from agentserve_sdk import testing

pytest.importorskip("claude_agent_sdk")
from agentserve_sdk import claude_agent
from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, query, tool

SEARCH = "mcp__web__search"


@tool("search", "Search the web.", {"q": str})
async def search(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"nothing new about {arguments['q']}"}]}


def answer(call: testing.Call) -> testing.Answer:
    return "Done: three cities." if call.turns else testing.ToolCall(SEARCH, {"q": "cities"})


async def ask(question: str) -> str:
    options = ClaudeAgentOptions(
        mcp_servers={"web": create_sdk_mcp_server("web", tools=[search])}, allowed_tools=[SEARCH],
        env=claude_agent.env(), hooks=claude_agent.hooks(), model="m", setting_sources=[],
    )  # fmt: skip
    said = ""
    async for message in query(prompt=question, options=options):
        said = getattr(message, "result", None) or said
    return said


@pytest.fixture(autouse=True)
def its_own_tool(gateway: testing.Gateway) -> None:
    gateway._answer = answer


async def test_claude_code_carries_the_program_and_its_tools_are_told(held: Any) -> None:
    with agentserve.workflow("fix"):
        assert await ask("of land-1") == "Done: three cities."
    program = held.gateway.only_program
    assert {call.program_id for call in held.gateway.calls} == {program.id}
    assert [(t.name, t.ended, t.status) for t in program.tools] == [(SEARCH, True, "succeeded")]
    assert program.tools[0].call_id in held.gateway.calls[-1].text, "the id is the model's"


async def test_runs_side_by_side_carry_their_own(held: Any) -> None:
    await held.side_by_side(ask)


async def hooked(event: str, said: dict[str, Any], call_id: str) -> None:
    for matcher in claude_agent.hooks()[event]:
        for hook in matcher.hooks:
            assert await hook({"hook_event_name": event, **said}, call_id, {"signal": None}) == {}


async def test_a_tool_that_fails_is_told_as_failed(held: Any) -> None:
    with agentserve.workflow("fix"):
        await hooked("PreToolUse", {"tool_name": "Bash", "tool_input": {"command": "secret"}}, "c1")
        await hooked("PostToolUseFailure", {"tool_name": "Bash", "error": "secret"}, "c1")
        await hooked("PostToolUse", {"tool_name": "Bash"}, "never-begun")
    program = held.gateway.only_program
    assert [(t.name, t.call_id, t.status) for t in program.tools] == [("Bash", "c1", "failed")]
    assert "secret" not in str(program.events)


async def test_a_tools_time_is_what_claude_code_measured_without_asking_for_permission(held: Any) -> None:
    with agentserve.workflow("fix"):
        await hooked("PreToolUse", {"tool_name": "Bash"}, "c1")
        await hooked("PostToolUse", {"tool_name": "Bash", "duration_ms": 1234}, "c1")
    assert [t.duration_ms for t in held.gateway.only_program.tools] == [1234]


def test_outside_of_a_program_hooks_and_environment_add_nothing(held: Any) -> None:
    assert "ANTHROPIC_CUSTOM_HEADERS" not in claude_agent.env()
    assert claude_agent.env()["ANTHROPIC_BASE_URL"] == held.gateway.url
