"""OpenAI Agents SDK: traces, over chat completions and responses."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("agents")
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, RunConfig, Runner, function_tool
from agents.tracing import set_trace_processors
from agentserve_sdk import openai_agents
from openai import AsyncOpenAI


@function_tool
def search(q: str) -> str:
    """Search."""
    return "res"


@pytest.fixture(autouse=True)
def no_upload() -> None:
    """Only our processor: the default one sends traces to the vendor."""
    set_trace_processors([openai_agents.Processor()])


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def agent(request: Any, held: Any) -> Any:
    client = AsyncOpenAI(base_url=held.gateway.base_url, api_key="k")
    return Agent(name="researcher", tools=[search], model=request.param(model="m", openai_client=client))


async def test_tasks_carry_their_own(held: Any, agent: Any) -> None:
    await held.side_by_side(lambda question: Runner.run(agent, question))


async def test_a_trace_is_a_program(held: Any, agent: Any) -> None:
    await Runner.run(agent, "of land-1", run_config=RunConfig(workflow_name="triage", group_id="chat-7"))
    program = held.one_program()
    assert program.steps == ["researcher", "researcher"]
    assert program.declared["workflow"] == "triage"
    assert program.declared["session_id"] == "chat-7"


def test_the_example_runs_as_it_stands(held: Any) -> None:
    held.example("openai_agents_run.py")


async def test_two_processors_are_as_one(held: Any, agent: Any) -> None:
    set_trace_processors([openai_agents.Processor(), openai_agents.Processor()])
    await held.side_by_side(lambda question: Runner.run(agent, question))
    for program in held.gateway.programs.values():
        assert [(tool.name, tool.ended) for tool in program.tools] == [("search", True)]
        assert program.steps == ["researcher", "researcher"]
