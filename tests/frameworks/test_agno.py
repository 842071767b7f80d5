"""Agno: the program by its client; no integration."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("agno")
from agno.agent import Agent
from agno.models.openai.like import OpenAILike


def search(q: str) -> str:
    """Search."""
    return "res"


def agent(held: Any) -> Any:
    model = OpenAILike(id="m", base_url=held.gateway.base_url, api_key="k")
    return Agent(model=model, tools=[search], telemetry=False)


def test_threads_carry_their_own(held: Any) -> None:
    held.in_threads(lambda question: agent(held).run(question))


async def test_tasks_carry_their_own(held: Any) -> None:
    await held.side_by_side(lambda question: agent(held).arun(question))
