"""Google ADK over LiteLLM: the program by its client; no integration."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("google.adk")
from google.adk.agents import Agent
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai import types


def search(q: str) -> str:
    """Search."""
    return "res"


async def test_tasks_carry_their_own(held: Any) -> None:
    async def run(question: str) -> None:
        model = LiteLlm(model="openai/m", api_base=held.gateway.base_url, api_key="k")
        runner = InMemoryRunner(agent=Agent(name="researcher", model=model, tools=[search]), app_name="app")
        session = await runner.session_service.create_session(app_name="app", user_id="u")
        said = types.Content(role="user", parts=[types.Part(text=question)])
        async for _ in runner.run_async(user_id="u", session_id=session.id, new_message=said):
            pass

    await held.side_by_side(run)
