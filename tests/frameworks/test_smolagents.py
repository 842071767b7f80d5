"""smolagents: tool-calling agents, whole and streamed."""

from __future__ import annotations

from typing import Any

import agentserve_sdk as agentserve
import pytest

pytest.importorskip("smolagents")
from agentserve_sdk import testing
from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool
def search(q: str) -> str:
    """Search.

    Args:
        q: what for
    """
    return "res"


def answer(call: testing.Call) -> testing.Answer:
    if call.turns:
        return testing.ToolCall("final_answer", {"answer": "three cities"})
    return testing.ToolCall("search", {"q": "cities"})


@pytest.fixture(autouse=True)
def its_own_end(gateway: testing.Gateway) -> None:
    gateway._answer = answer


def agent(held: Any) -> Any:
    model = OpenAIServerModel("m", api_base=held.gateway.base_url, api_key="k")
    return ToolCallingAgent(tools=[search], model=model, verbosity_level=0)


def test_threads_carry_their_own(held: Any) -> None:
    held.in_threads(lambda question: agent(held).run(question))


def test_a_run_is_a_program(held: Any) -> None:
    assert agent(held).run("of land-1") == "three cities"
    held.one_program()


def test_a_streamed_run_is_one_too(held: Any) -> None:
    for _ in agent(held).run("of land-1", stream=True):
        assert agentserve.current() is None
    held.one_program()


def test_the_example_runs_as_it_stands(held: Any) -> None:
    held.example("smolagents_agent.py", text="three cities")
