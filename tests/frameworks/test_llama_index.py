"""LlamaIndex: agent workflows and function tools."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("llama_index.core")
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike


def search(q: str) -> str:
    """Search."""
    return "res"


def agent(held: Any, **more: Any) -> Any:
    model = OpenAILike(
        model="m",
        api_base=held.gateway.base_url,
        api_key="k",
        is_chat_model=True,
        is_function_calling_model=True,
    )
    return FunctionAgent(tools=[search], llm=model, name="researcher", **more)


@pytest.mark.parametrize("streaming", [True, False])
async def test_tasks_carry_their_own(held: Any, streaming: bool) -> None:
    async def run(question: str) -> None:
        await agent(held, streaming=streaming).run(question)

    await held.side_by_side(run)


async def test_a_run_is_a_program(held: Any) -> None:
    await agent(held).run("of land-1")
    assert held.one_program().declared["workflow"] == "researcher"


def test_the_example_runs_as_it_stands(held: Any) -> None:
    held.example("llama_index_agent.py")
