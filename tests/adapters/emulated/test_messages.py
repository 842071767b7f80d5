"""The emulated server as the real Anthropic client sees it."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

SCRIPT = 'agentserve-script: [{"tool": "search", "arguments": {"q": "x"}}, {"text": "all done"}]'
TOOLS: Any = [{"name": "search", "description": "d", "input_schema": {"type": "object", "properties": {}}}]


def client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


async def test_a_streamed_message_says_the_same_as_a_whole_one(serve: Any) -> None:
    asked: Any = {
        "model": "emulated",
        "max_tokens": 30,
        "messages": [{"role": "user", "content": "tell " * 60}],
    }
    async with serve() as (url, _), client(url) as c:
        whole = await c.messages.create(**asked)
        async with c.messages.stream(**asked) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        counted = await c.messages.count_tokens(model="emulated", messages=asked["messages"])
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text != ""
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert counted.input_tokens == whole.usage.input_tokens
    assert final.usage.cache_read_input_tokens


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_scripted_conversation_goes_through_a_tool(serve: Any, streamed: bool) -> None:
    messages: Any = [{"role": "user", "content": "go"}]
    async with serve() as (url, _), client(url) as c:

        async def ask() -> Any:
            asked: Any = {
                "model": "emulated",
                "max_tokens": 200,
                "system": SCRIPT,
                "messages": messages,
                "tools": TOOLS,
            }
            if not streamed:
                return await c.messages.create(**asked)
            async with c.messages.stream(**asked) as stream:
                return await stream.get_final_message()

        first = await ask()
        assert first.stop_reason == "tool_use"
        (call,) = first.content
        assert (call.name, call.input) == ("search", {"q": "x"})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "found"}
        messages += [
            {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]},
            {"role": "user", "content": [result]},
        ]
        second = await ask()
    assert second.stop_reason == "end_turn"
    assert second.content[0].text == "all done"


async def test_errors_have_anthropics_shape(serve: Any) -> None:
    async with serve() as (url, _), client(url) as c:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await c.messages.create(model="other", max_tokens=5, messages=[{"role": "user", "content": "x"}])
    body: Any = caught.value.body
    assert body["type"] == "error"
