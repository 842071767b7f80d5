"""An engine that speaks Anthropic's protocol itself: through the gateway its library gets the very same objects.

Rule: as in `test_native_clients`, each call is made twice and the answers are compared field by field.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.live.conftest import ScriptedEngine, Serve, answers, streams
from tests.live.native import PIXEL, SAY_OK, both, plain, spoken
from tests.live.test_clients import HI, SCRIPT, TOOL, Answer

CLAUDE_TOOL: Any = {"name": "search", "input_schema": TOOL["function"]["parameters"]}


CLAUDE_SEES: Any = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image", "source": {
        "type": "base64", "media_type": "image/gif", "data": PIXEL.partition(",")[2]}}]}
]  # fmt: skip


@pytest.fixture
async def urls(serve: Serve) -> AsyncIterator[tuple[str, str]]:
    async with both(serve) as addresses:
        yield addresses


async def _message_events(client: AsyncAnthropic, **asked: Any) -> Any:
    async with client.messages.stream(**asked) as stream:
        events = [event async for event in stream]
        return [spoken(events), plain(await stream.get_final_message())]


async def _message_raw_events(client: AsyncAnthropic, **asked: Any) -> Any:
    return spoken([event async for event in await client.messages.create(stream=True, **asked)])


async def _raw_message(client: AsyncAnthropic) -> Any:
    raw = await client.messages.with_raw_response.create(**BRIEF)
    return [raw.status_code, raw.headers["content-type"], plain(await raw.parse())]


async def _claude_listed(client: AsyncAnthropic) -> Any:
    return [model.id async for model in client.models.list()]


BRIEF: Any = {"model": "emulated", "max_tokens": 9, "messages": HI}


TOOLS: Any = {
    "model": "emulated", "max_tokens": 99, "tools": [CLAUDE_TOOL], "messages": [{"role": "user", "content": SCRIPT}],
}  # fmt: skip


RESULT: Any = {
    **TOOLS,
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        *TOOLS["messages"],
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "search", "input": {"q": 1}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "found"}]},
    ],
}


CLAUDE: dict[str, Callable[[AsyncAnthropic], Awaitable[Any]]] = {
    "a message": lambda c: c.messages.create(**BRIEF),
    "a stop sequence": lambda c: c.messages.create(**{**BRIEF, "max_tokens": 40}, stop_sequences=["e"]),
    "a tool call": lambda c: c.messages.create(**TOOLS),
    "a tool's result": lambda c: c.messages.create(**RESULT),
    "a streamed message": lambda c: _message_events(c, **BRIEF),
    "a streamed tool call": lambda c: _message_events(c, **TOOLS),
    "raw events": lambda c: _message_raw_events(c, **BRIEF),
    "an image": lambda c: c.messages.create(model="emulated", max_tokens=5, messages=CLAUDE_SEES),
    "a beta's message": lambda c: c.beta.messages.create(**BRIEF, betas=["context-1m-2025-08-07"]),
    "a parsed message": lambda c: c.messages.parse(
        model="emulated", max_tokens=40, messages=[{"role": "user", "content": SAY_OK}], output_format=Answer
    ),
    "a raw message": lambda c: _raw_message(c),
    "the models": lambda c: _claude_listed(c),
}


@pytest.mark.parametrize("name", CLAUDE)
async def test_anthropics_client_gets_the_same_object(name: str, urls: tuple[str, str]) -> None:
    seen = []
    for url in (urls[0], *urls):
        async with AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client:
            seen.append(plain(await CLAUDE[name](client)))
    assert seen[1] == seen[2]


async def test_anthropics_synchronous_client_gets_the_same_object(urls: tuple[str, str]) -> None:
    def ask(url: str) -> Any:
        with Anthropic(base_url=url, api_key="any", max_retries=0) as client:
            with client.messages.stream(**TOOLS) as stream:
                events = spoken(list(stream))
            return [plain(client.messages.create(**BRIEF)), events]

    seen = [await asyncio.to_thread(ask, url) for url in (urls[0], *urls)]
    assert seen[1] == seen[2]


THOUGHTFUL: list[Any] = [
    {"type": "thinking", "thinking": "Let me see: ünïcode…", "signature": "EqQBCgIYAhIM"},
    {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3p"},
    {"type": "text", "text": "Forty-two.", "citations": None},
    {
        "type": "tool_use",
        "id": "toolu_7",
        "name": "search",
        "input": {"q": "x", "deep": {"n": [1, 2.5, None]}},
    },
]


MESSAGE: Any = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": THOUGHTFUL,
    "stop_reason": "tool_use", "stop_sequence": None, "a_field_of_tomorrow": {"kept": True},
    "usage": {"input_tokens": 9, "output_tokens": 8, "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 2, "service_tier": "standard"},
}  # fmt: skip


def message_stream() -> list[bytes]:
    """The message above as its events, with a ping between, cut in the middle of characters and events."""
    events: list[Any] = [
        {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}
    ]
    deltas: list[list[Any]] = [
        [{"type": "thinking_delta", "thinking": "Let me see: "}, {"type": "thinking_delta", "thinking": "ünïcode…"},
         {"type": "signature_delta", "signature": "EqQBCgIYAhIM"}],
        [],
        [{"type": "text_delta", "text": "Forty-"}, {"type": "text_delta", "text": "two."}],
        [{"type": "input_json_delta", "partial_json": '{"q": "x", "deep":'},
         {"type": "input_json_delta", "partial_json": ' {"n": [1, 2.5, null]}}'}],
    ]  # fmt: skip
    empty: list[Any] = [{**THOUGHTFUL[0], "thinking": "", "signature": ""}, THOUGHTFUL[1],
                        {**THOUGHTFUL[2], "text": ""}, {**THOUGHTFUL[3], "input": {}}]  # fmt: skip
    for i, block in enumerate(empty):
        events += [{"type": "content_block_start", "index": i, "content_block": block}, {"type": "ping"}]
        events += [{"type": "content_block_delta", "index": i, "delta": delta} for delta in deltas[i]]
        events += [{"type": "content_block_stop", "index": i}]
    events += [
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 8}},
        {"type": "message_stop"},
    ]  # fmt: skip
    whole = b"".join(
        f"event: {e['type']}\ndata: {json.dumps(e, ensure_ascii=False)}\n\n".encode() for e in events
    )
    return [whole[at : at + 37] for at in range(0, len(whole), 37)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_thinking_and_fields_of_tomorrow_reach_anthropics_client(
    streamed: bool, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = streams(*message_stream()) if streamed else answers(200, MESSAGE)
    asked: Any = {"model": "m", "max_tokens": 2000, "messages": HI, "tools": [CLAUDE_TOOL]}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    seen: list[Any] = []
    for url in (engine.url, running.url):
        async with AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client:
            if streamed:
                async with client.messages.stream(**asked) as stream:
                    events = [event.model_dump(mode="json", warnings=False) async for event in stream]
                    seen.append(
                        [events, (await stream.get_final_message()).model_dump(mode="json", warnings=False)]
                    )
            else:
                raw = await client.messages.with_raw_response.create(**asked)
                seen.append([await raw.text(), (await raw.parse()).model_dump(mode="json", warnings=False)])
    assert seen[0] == seen[1]
    assert [block["type"] for block in seen[1][1]["content"]] == [b["type"] for b in THOUGHTFUL]
