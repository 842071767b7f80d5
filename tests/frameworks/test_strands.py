"""Strands: invocations and tools."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("strands")
from strands import Agent, tool
from strands.models.openai import OpenAIModel


@tool
def search(q: str) -> str:
    """Search."""
    return "res"


def agent(held: Any) -> Any:
    model = OpenAIModel(client_args={"base_url": held.gateway.base_url, "api_key": "k"}, model_id="m")
    return Agent(model=model, tools=[search], name="researcher", callback_handler=None)


def test_threads_carry_their_own(held: Any) -> None:
    held.in_threads(lambda question: agent(held)(question))


async def test_tasks_carry_their_own(held: Any) -> None:
    await held.side_by_side(lambda question: agent(held).invoke_async(question))


def test_an_invocation_is_a_program(held: Any) -> None:
    agent(held)("of land-1")
    assert held.one_program(model_ids=True).declared["workflow"] == "researcher"


def test_the_example_runs_as_it_stands(held: Any) -> None:
    held.example("strands_agent.py")
