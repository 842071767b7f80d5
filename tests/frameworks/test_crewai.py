"""CrewAI: kickoffs, roles and tools."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")
pytest.importorskip("crewai")
from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool("search")
def search(q: str) -> str:
    """Search."""
    return "res"


def crew(held: Any, question: str) -> Any:
    model = LLM(model="openai/gpt-4o", base_url=held.gateway.base_url, api_key="k")
    agent = Agent(role="researcher", goal="g", backstory="b", tools=[search], llm=model, verbose=False)
    task = Task(description=question, expected_output="a list", agent=agent)
    return Crew(name="cities", agents=[agent], tasks=[task], verbose=False, tracing=False)


def test_threads_carry_their_own(held: Any) -> None:
    held.in_threads(lambda question: crew(held, question).kickoff())


async def test_tasks_carry_their_own(held: Any) -> None:
    await held.side_by_side(lambda question: crew(held, question).kickoff_async())


def test_a_kickoff_is_a_program(held: Any) -> None:
    crew(held, "of land-1").kickoff()
    program = held.one_program()
    assert program.declared["workflow"] == "cities"
    assert set(program.steps) == {"researcher"}


def test_the_example_runs_as_it_stands(held: Any) -> None:
    held.example("crewai_crew.py")
