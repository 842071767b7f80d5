"""AutoGen: the program by its client; no integration."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("autogen_agentchat")
from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient


async def search(q: str) -> str:
    """Search."""
    return "res"


async def test_tasks_carry_their_own(held: Any) -> None:
    info: Any = {
        "vision": False, "function_calling": True, "json_output": False, "family": "unknown",
        "structured_output": False,
    }  # fmt: skip
    model = OpenAIChatCompletionClient(
        model="m", base_url=held.gateway.base_url, api_key="k", model_info=info
    )

    async def run(question: str) -> None:
        agent = AssistantAgent("a", model, tools=[search], reflect_on_tool_use=True)
        await agent.run(task=question)

    await held.side_by_side(run)
    await model.close()
