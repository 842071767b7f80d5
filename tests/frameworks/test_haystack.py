"""Haystack: agents and tools."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("haystack")
from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret


def search(q: str) -> str:
    """Search."""
    return "res"


def agent(held: Any) -> Any:
    model = OpenAIChatGenerator(api_key=Secret.from_token("k"), model="m", api_base_url=held.gateway.base_url)
    return Agent(chat_generator=model, tools=[create_tool_from_function(search)])


def test_threads_carry_their_own(held: Any) -> None:
    held.in_threads(lambda question: agent(held).run(messages=[ChatMessage.from_user(question)]))


async def test_tasks_carry_their_own(held: Any) -> None:
    await held.side_by_side(
        lambda question: agent(held).run_async(messages=[ChatMessage.from_user(question)])
    )


def test_a_run_is_a_program(held: Any) -> None:
    agent(held).run(messages=[ChatMessage.from_user("of land-1")])
    assert held.one_program().declared["workflow"] == "Agent"
