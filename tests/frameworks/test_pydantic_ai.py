"""Pydantic AI: the capability."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pydantic_ai")
from agentserve_sdk.pydantic_ai import Serve
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


@pytest.fixture
def agent(held: Any) -> Any:
    provider = OpenAIProvider(base_url=held.gateway.base_url, api_key="k")
    agent = Agent(OpenAIChatModel("m", provider=provider), name="researcher", capabilities=[Serve()])

    @agent.tool_plain
    def search(q: str) -> str:
        return "res"

    return agent


async def test_tasks_carry_their_own(held: Any, agent: Any) -> None:
    await held.side_by_side(lambda question: agent.run(question))


async def test_a_run_is_a_program(held: Any, agent: Any) -> None:
    await agent.run("of land-1")
    program = held.one_program(model_ids=True)
    assert program.steps == ["researcher", "researcher"]
    assert program.declared["workflow"] == "researcher"


def test_the_example_runs_as_it_stands(held: Any) -> None:
    held.example("pydantic_ai_agent.py")
