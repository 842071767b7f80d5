"""Responses from the emulated server, as the real OpenAI client sees them."""

from __future__ import annotations

from typing import Any

import openai

SCRIPT = 'agentserve-script: [{"tool": "search", "arguments": {"q": "x"}}, {"text": "all done"}]'
TOOLS: Any = [{"type": "function", "name": "search", "parameters": {"type": "object", "properties": {}}}]


async def test_a_streamed_response_says_the_same_as_a_whole_one(serve: Any) -> None:
    asked: Any = {"model": "emulated", "input": "tell " * 60, "max_output_tokens": 30}
    asked["extra_body"] = {"ignore_eos": True}
    async with serve() as (url, _), openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as c:
        whole = await c.responses.create(**asked)
        events = [event async for event in await c.responses.create(**asked, stream=True)]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text != ""
    final: Any = events[-1]
    assert final.type == "response.incomplete"
    assert final.response.output_text == text
    assert final.response.usage.input_tokens_details.cached_tokens > 0
    assert [e.sequence_number for e in events] == list(range(len(events)))


async def test_a_scripted_response_calls_a_tool_and_goes_on(serve: Any) -> None:
    given: Any = [{"role": "user", "content": SCRIPT}]
    async with serve() as (url, _), openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as c:
        first: Any = await c.responses.create(model="emulated", input=given, tools=TOOLS)
        (call,) = first.output
        assert (call.type, call.name, call.arguments) == ("function_call", "search", '{"q":"x"}')
        given += [
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments,
            },
            {"type": "function_call_output", "call_id": call.call_id, "output": "found"},
        ]
        events = [
            e async for e in await c.responses.create(model="emulated", input=given, tools=TOOLS, stream=True)
        ]
    final: Any = events[-1]
    assert final.type == "response.completed"
    assert final.response.output_text == "all done"
