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
from openai import AsyncOpenAI, OpenAI

from tests.live.conftest import Behaviour, Running, ScriptedEngine, Serve, answers
from tests.live.native import PIXEL, SAY_OK, both, plain, spoken
from tests.live.test_clients import HI, SCRIPT, TOOL, Answer

FUNCTION: Any = {
    "type": "function",
    "name": "search",
    "parameters": TOOL["function"]["parameters"],
    "strict": False,
}


@pytest.fixture
async def urls(serve: Serve) -> AsyncIterator[tuple[str, str]]:
    async with both(serve) as addresses:
        yield addresses


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


SEEN: Any = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                 {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]}
]  # fmt: skip
LOOKED_AT: Any = [
    {"role": "user", "content": [{"type": "input_text", "text": "What is this?"},
                                 {"type": "input_image", "image_url": PIXEL, "detail": "low"}]}
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
