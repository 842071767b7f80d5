"""The plain OpenAI client, with a tool loop of the application's own."""

from __future__ import annotations

from typing import Any

import agentserve_sdk as agentserve
import pytest

openai = pytest.importorskip("openai")
TOOLS: Any = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]


def agent(client: Any, question: str) -> None:
    messages: list[Any] = [{"role": "user", "content": question}]
    while True:
        reply = client.chat.completions.create(model="m", messages=messages, tools=TOOLS).choices[0].message
        messages.append(reply)
        if not reply.tool_calls:
            return
        for call in reply.tool_calls:
            with agentserve.tool(call.function.name, call_id=call.id):
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "res"})


def test_threads_carry_their_own(held: Any) -> None:
    with openai.OpenAI(base_url=held.gateway.base_url, api_key="k") as client:
        held.in_threads(lambda question: agent(client, question))


async def test_tasks_carry_their_own(held: Any) -> None:
    async with openai.AsyncOpenAI(base_url=held.gateway.base_url, api_key="k") as client:

        async def ask(question: str) -> None:
            for _ in range(2):
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": question}]
                )

        await held.side_by_side(ask)


async def test_streams_carry_their_own(held: Any) -> None:
    async with openai.AsyncOpenAI(base_url=held.gateway.base_url, api_key="k") as client:

        async def ask(question: str) -> None:
            async for _ in await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": question}], stream=True
            ):
                pass

        await held.side_by_side(ask)


def test_marked_tools_have_the_models_id(held: Any) -> None:
    with openai.OpenAI(base_url=held.gateway.base_url, api_key="k") as client, agentserve.workflow("w"):
        agent(client, "of land-1")
    held.one_program(model_ids=True)
