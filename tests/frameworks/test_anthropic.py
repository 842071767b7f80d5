"""The plain Anthropic client."""

from __future__ import annotations

from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic")


def ask(client: Any, question: str) -> None:
    for _ in range(2):
        client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": question}])


def test_threads_carry_their_own(held: Any) -> None:
    with anthropic.Anthropic(base_url=held.gateway.url, api_key="k") as client:
        held.in_threads(lambda question: ask(client, question))


async def test_streams_in_tasks_carry_their_own(held: Any) -> None:
    async with anthropic.AsyncAnthropic(base_url=held.gateway.url, api_key="k") as client:

        async def stream(question: str) -> None:
            said: Any = [{"role": "user", "content": question}]
            async with client.messages.stream(model="m", max_tokens=9, messages=said) as stream:
                assert await stream.get_final_text() == "Done: three cities."

        await held.side_by_side(stream)
