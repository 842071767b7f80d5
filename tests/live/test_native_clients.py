"""Engines that speak a client's protocol themselves: through the gateway its library gets the very same objects.

Rule: each call is made twice, at the engine and at the gateway, and the answers are compared field by field; only ids
and times may differ. What engines do not keep (responses, conversations) is asked of the gateway alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from agentserve.config import EngineSettings, Settings
from tests.live.conftest import Behaviour, Running, ScriptedEngine, Serve, answers, streams
from tests.live.test_clients import HI, SCRIPT, TOOL, Answer, served

FUNCTION: Any = {
    "type": "function",
    "name": "search",
    "parameters": TOOL["function"]["parameters"],
    "strict": False,
}
CLAUDE_TOOL: Any = {"name": "search", "input_schema": TOOL["function"]["parameters"]}
SAY_OK = 'agentserve-script: [{"text": "{\\"ok\\": true}"}]'
RETOLD = ("text", "input_json")
DIFFERS = ("id", "created", "created_at", "completed_at", "call_id", "item_id", "response_id")


def plain(value: Any) -> Any:
    """An answer without what differs from call to call."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", warnings=False)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in DIFFERS}
    return value


def spoken(events: list[Any]) -> Any:
    """A stream's events without how an engine happened to cut its words: neighbouring pieces are put together.

    Anthropic's library tells each piece twice, as it came and as an event of its own, which would stand between them.
    """
    kept: list[Any] = []
    for event in events:
        said = plain(event)
        if said.get("type") in RETOLD:
            continue
        said.pop("sequence_number", None)
        said.pop("snapshot", None)
        last = kept[-1] if kept else {}
        if "delta" in said and last.get("type") == said["type"]:
            last["delta"] = put_together(last["delta"], said["delta"])
        else:
            kept.append(said)
    return kept


def put_together(before: Any, after: Any) -> Any:
    """Two pieces of one text."""
    if isinstance(before, str):
        return before + after
    return {key: before[key] if key == "type" else before[key] + after[key] for key in before}


@pytest.fixture
async def urls(serve: Serve) -> AsyncIterator[tuple[str, str]]:
    """The engine's and the gateway's."""
    async with served() as port:
        url = f"http://127.0.0.1:{port}"
        settings = Settings(engines=(EngineSettings(id="e1", url=url, models=("emulated",)),))
        yield url, (await serve(settings=settings)).url


# -- OpenAI


async def _events(client: AsyncOpenAI, **asked: Any) -> Any:
    async with client.responses.stream(model="emulated", **asked) as stream:
        events = [event async for event in stream]
        return [spoken(events), plain(await stream.get_final_response())]


async def _created(client: AsyncOpenAI, **asked: Any) -> Any:
    return spoken([e async for e in await client.responses.create(model="emulated", stream=True, **asked)])


async def _chat_events(client: AsyncOpenAI) -> Any:
    async with client.chat.completions.stream(model="emulated", messages=HI) as stream:
        async for _ in stream:
            pass
        return plain(await stream.get_final_completion())


async def _raw_stream(client: AsyncOpenAI) -> Any:
    asked: Any = {"model": "emulated", "input": "hello", "max_output_tokens": 5}
    async with client.responses.with_streaming_response.create(**asked) as reply:
        return [reply.status_code, reply.headers["content-type"], plain(json.loads(await reply.read()))]


async def _samples(client: AsyncOpenAI) -> Any:
    """What each of two samples says, and what both used."""
    said, usage = ["", ""], None
    stream = await client.chat.completions.create(
        model="emulated", messages=HI, n=2, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    return [said, plain(usage)]


async def _listed(client: AsyncOpenAI) -> Any:
    return [model.id async for model in client.models.list()]


PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
SEEN: Any = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                 {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]}
]  # fmt: skip
LOOKED_AT: Any = [
    {"role": "user", "content": [{"type": "input_text", "text": "What is this?"},
                                 {"type": "input_image", "image_url": PIXEL, "detail": "low"}]}
]  # fmt: skip
CLAUDE_SEES: Any = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image", "source": {
        "type": "base64", "media_type": "image/gif", "data": PIXEL.partition(",")[2]}}]}
]  # fmt: skip
Call = Callable[[AsyncOpenAI], Awaitable[Any]]
OPENAI: dict[str, Call] = {
    "a response": lambda c: c.responses.create(model="emulated", input="hello", max_output_tokens=9),
    "instructions and items": lambda c: c.responses.create(
        model="emulated", input=HI, instructions="be brief", metadata={"of": "ours"}, temperature=0.3
    ),
    "a function call": lambda c: c.responses.create(model="emulated", input=SCRIPT, tools=[FUNCTION]),
    "a parsed response": lambda c: c.responses.parse(model="emulated", input=SAY_OK, text_format=Answer),
    "a streamed response": lambda c: _events(c, input="hello"),
    "a streamed function call": lambda c: _events(c, input=SCRIPT, tools=[FUNCTION]),
    "a parsed stream": lambda c: _events(c, input=SAY_OK, text_format=Answer),
    "a response's raw events": lambda c: _created(c, input="hello", max_output_tokens=9),
    "bytes of a response": _raw_stream,
    "a chat's helper": _chat_events,
    "embeddings as numbers": lambda c: c.embeddings.create(
        model="emulated", input="one", encoding_format="float"
    ),
    "embeddings of tokens": lambda c: c.embeddings.create(model="emulated", input=[[1, 2], [3]]),
    "a prompt of tokens": lambda c: c.completions.create(model="emulated", prompt=[7, 8, 9], max_tokens=4),
    "an image": lambda c: c.chat.completions.create(model="emulated", messages=SEEN, max_tokens=5),
    "an image of a response": lambda c: c.responses.create(
        model="emulated", input=LOOKED_AT, max_output_tokens=5
    ),
    "two samples in a stream": lambda c: _samples(c),
    "chosen tools": lambda c: c.chat.completions.create(
        model="emulated",
        messages=HI,
        tools=[TOOL],
        tool_choice="none",
        parallel_tool_calls=False,
        max_tokens=5,
    ),
    "the models": lambda c: _listed(c),
    "a refusal": lambda c: _error(c.responses.create(model="emulated", input=[], max_output_tokens=-1)),
}


async def _error(call: Awaitable[Any]) -> Any:
    with pytest.raises(openai.APIStatusError) as refused:
        await call
    return [type(refused.value).__name__, refused.value.body]


@pytest.mark.parametrize("name", OPENAI)
async def test_openais_client_gets_the_same_object(name: str, urls: tuple[str, str]) -> None:
    seen = []
    for url in (urls[0], *urls):  # once beforehand, so that the engine's cache is the same for both
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            seen.append(plain(await OPENAI[name](client)))
    assert seen[1] == seen[2]


def _finished(helper: Any) -> Any:
    """What a streaming helper has at the end."""
    with helper as stream:
        for _ in stream:
            pass
        final = getattr(stream, "get_final_completion", None) or stream.get_final_response
        return plain(final())


Sync = Callable[[OpenAI], Any]
SYNC: dict[str, Sync] = {
    "chat": lambda c: c.chat.completions.create(model="emulated", messages=HI, max_tokens=9),
    "parsed chat": lambda c: c.chat.completions.parse(
        model="emulated", messages=[{"role": "user", "content": SAY_OK}], response_format=Answer
    ),
    "a tool call": lambda c: c.chat.completions.create(
        model="emulated", messages=[{"role": "user", "content": SCRIPT}], tools=[TOOL]
    ),
    "completions": lambda c: c.completions.create(model="emulated", prompt="once", max_tokens=9),
    "embeddings": lambda c: c.embeddings.create(model="emulated", input=["a", "b"]),
    "a response": lambda c: c.responses.create(model="emulated", input="hello", max_output_tokens=9),
    "a parsed response": lambda c: c.responses.parse(model="emulated", input=SAY_OK, text_format=Answer),
    "a streamed response": lambda c: spoken(
        list(c.responses.create(model="emulated", input="hello", max_output_tokens=9, stream=True))
    ),
    "a raw response": lambda c: c.responses.with_raw_response.create(
        model="emulated", input="hello", max_output_tokens=9
    ).parse(),
    "a raw chat": lambda c: c.chat.completions.with_raw_response.create(
        model="emulated", messages=HI, max_tokens=3
    ).parse(),
    "a chat's helper": lambda c: _finished(c.chat.completions.stream(model="emulated", messages=HI)),
    "a parsed chat's helper": lambda c: _finished(
        c.chat.completions.stream(
            model="emulated", messages=[{"role": "user", "content": SAY_OK}], response_format=Answer
        )
    ),
    "a response's helper": lambda c: _finished(c.responses.stream(model="emulated", input="hello")),
    "a parsed response's helper": lambda c: _finished(
        c.responses.stream(model="emulated", input=SAY_OK, text_format=Answer)
    ),
    "embeddings as numbers": lambda c: c.embeddings.create(
        model="emulated", input="one", encoding_format="float"
    ),
    "the models": lambda c: [model.id for model in c.models.list()],
}


@pytest.mark.parametrize("name", SYNC)
async def test_openais_synchronous_client_gets_the_same_object(name: str, urls: tuple[str, str]) -> None:
    def ask(url: str) -> Any:
        with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            return plain(SYNC[name](client))

    seen = [await asyncio.to_thread(ask, url) for url in (urls[0], *urls)]
    assert seen[1] == seen[2]


# -- Anthropic


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


REASONED: Any = {
    "id": "chatcmpl-9", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": "fp",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "42", "refusal": None,
        "reasoning_content": "six by seven"}, "logprobs": {"content": [{"token": "42", "logprob": -0.25, "bytes": [52],
        "top_logprobs": []}], "refusal": None}, "a_field_of_tomorrow": 1}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}  # fmt: skip
FAILURES: dict[str, Behaviour] = {
    "reasoning and logprobs": answers(200, REASONED),
    "a refusal": answers(400, {"error": {"message": "no", "type": "invalid", "param": "x", "code": "c"}}),
    "a refusal in other words": answers(422, {"detail": [{"loc": ["body"], "msg": "no"}]}),
    "too many requests": answers(429, {"error": {"message": "later"}}, "retry-after: 7\r\n"),
    "its own failure": answers(500, {"error": {"message": "broken", "type": "server_error"}}),
    "text, not JSON": answers(500, b"Internal Server Error"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_what_only_some_engines_say_reaches_openais_client(
    name: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = FAILURES[name]
    seen: list[Any] = []
    for url in (engine.url, running.url):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            try:
                whole = await client.chat.completions.create(model="m", messages=HI)
                seen.append(whole.model_dump(mode="json"))
            except openai.APIStatusError as error:
                seen.append(
                    [
                        type(error),
                        error.status_code,
                        error.body,
                        str(error),
                        error.response.headers.get("retry-after"),
                    ]
                )
    assert seen[0] == seen[1]


# -- what engines do not keep


@pytest.mark.parametrize("base", ["/v1", "/p/a-run/v1"])
async def test_responses_and_conversations_are_kept_for_openais_synchronous_client(
    base: str, urls: tuple[str, str]
) -> None:
    def ask() -> None:
        with OpenAI(base_url=f"{urls[1]}{base}", api_key="any", max_retries=0) as client:
            first = client.responses.create(model="emulated", input="hello", max_output_tokens=5)
            second = client.responses.create(
                model="emulated", input="go on", previous_response_id=first.id, max_output_tokens=5
            )
            assert client.responses.retrieve(second.id).output_text == second.output_text
            asked: list[Any] = list(client.responses.input_items.list(second.id, order="asc"))
            texts = [item.content[0].text for item in asked]
            assert texts == ["hello", first.output_text, "go on"]
            client.responses.delete(first.id)
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(first.id)
            with pytest.raises(openai.BadRequestError):
                client.responses.cancel(second.id)

            conversation = client.conversations.create(metadata={"of": "ours"})
            said = client.responses.create(
                model="emulated", input="hi", conversation=conversation.id, max_output_tokens=5
            )
            assert said.conversation is not None
            assert said.conversation.id == conversation.id
            items = list(client.conversations.items.list(conversation.id, order="asc"))
            assert [item.type for item in items] == ["message", "message"]
            one = client.conversations.items.retrieve(items[0].id or "", conversation_id=conversation.id)
            assert one == items[0]
            client.conversations.items.delete(items[0].id or "", conversation_id=conversation.id)
            renamed = client.conversations.update(conversation.id, metadata={"of": "yours"})
            assert client.conversations.retrieve(conversation.id) == renamed
            assert client.conversations.delete(conversation.id).deleted
            assert [model.id for model in client.models.list()] == ["emulated"]
            assert client.models.retrieve("emulated").id == "emulated"

    await asyncio.to_thread(ask)


async def test_a_background_response_is_cancelled_and_polled_by_openais_client(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running: Running = await serve(engine)
    held = asyncio.Event()

    async def never(*_: Any) -> None:
        held.set()
        await asyncio.sleep(60.0)

    engine.otherwise = never
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        begun = await client.responses.create(model="m", input="hello", background=True)
        assert begun.status == "queued"
        async with asyncio.timeout(30.0):
            await held.wait()
        assert (await client.responses.retrieve(begun.id)).status == "in_progress"
        assert (await client.responses.cancel(begun.id)).status == "cancelled"
        assert (await client.responses.retrieve(begun.id)).status == "cancelled"
        await client.responses.delete(begun.id)
    await running.quiet()
