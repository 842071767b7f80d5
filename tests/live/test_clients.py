"""The real clients get from the gateway what they get from the engine: the same objects, field by field."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from agentserve_adapters.emulated import EmulatedOptions, EmulatedServer
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from agentserve.config import EngineSettings, Settings
from tests.live.conftest import Running, Serve, until

SCRIPT = (
    'agentserve-script: [{"tool": "search", "arguments": {"q": "x", "n": 2}}, {"text": "{\\"ok\\": true}"}]'
)
TOOL: Any = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
}
HI: Any = [{"role": "user", "content": "hello there"}]


class Answer(BaseModel):
    ok: bool


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[int]:
    """An emulated engine on a port of its own."""
    server = EmulatedServer(EmulatedOptions(time_scale=1000.0))
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(server, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    task = asyncio.get_running_loop().create_task(uvicorn_server._serve())
    await until(lambda: uvicorn_server.started)
    yield uvicorn_server.servers[0].sockets[0].getsockname()[1]
    uvicorn_server.should_exit = uvicorn_server.force_exit = True  # the gateway's idle connections may be cut
    await asyncio.wait([task], timeout=5.0)


@pytest.fixture
async def both(serve: Serve) -> AsyncIterator[tuple[AsyncOpenAI, AsyncOpenAI, Running]]:
    """The same client, once at the engine and once at the gateway."""
    async with served() as port:
        url = f"http://127.0.0.1:{port}"
        engine = EngineSettings(
            id="e1", url=url, models=("emulated",), extra={"protocols": ["chat", "completions", "embeddings"]}
        )
        running = await serve(settings=Settings(engines=(engine,)))
        direct = AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        through = AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
        yield direct, through, running
        await direct.close()
        await through.close()


def plain(value: Any) -> Any:
    """An answer without what differs from call to call: ids and times."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", warnings=False)
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in ("id", "created")}
    return re.sub(r"chatcmpl-\S+|call_\w+", "ID", value) if isinstance(value, str) else value


async def collected(stream: Any) -> list[Any]:
    return [chunk async for chunk in await stream]


async def joined(chunks: list[Any]) -> list[Any]:
    """Chunks by what they say: how often an engine writes depends on the moment."""
    said: dict[str, Any] = {"text": "", "roles": [], "finish": [], "usage": None, "tools": {}}
    for chunk in chunks:
        if getattr(chunk, "usage", None) is not None:
            said["usage"] = chunk.usage
        for choice in chunk.choices:
            delta = getattr(choice, "delta", None)
            said["text"] += (delta.content if delta is not None else choice.text) or ""
            said["roles"] += [delta.role] if delta is not None and delta.role else []
            said["finish"] += [choice.finish_reason] if choice.finish_reason else []
            for call in (delta.tool_calls if delta is not None else None) or ():
                before = said["tools"].get(call.index, "")
                said["tools"][call.index] = (
                    before + (call.function.name or "") + (call.function.arguments or "")
                )
    return [plain(said)]


Call = Callable[[AsyncOpenAI], Awaitable[Any]]
CALLS: dict[str, Call] = {
    "chat": lambda c: c.chat.completions.create(model="emulated", messages=HI, max_tokens=12),
    "two choices": lambda c: c.chat.completions.create(model="emulated", messages=HI, max_tokens=6, n=2),
    "a seed and stops": lambda c: c.chat.completions.create(
        model="emulated", messages=HI, max_tokens=30, stop=["e"], seed=3
    ),
    "a tool call": lambda c: c.chat.completions.create(
        model="emulated", messages=[{"role": "user", "content": SCRIPT}], tools=[TOOL]
    ),
    "an unknown field": lambda c: c.chat.completions.create(
        model="emulated", messages=HI, max_tokens=4, extra_body={"ignore_eos": True, "min_tokens": 4}
    ),
    "completions": lambda c: c.completions.create(model="emulated", prompt="once upon", max_tokens=8),
    "embeddings": lambda c: c.embeddings.create(model="emulated", input=["a", "b"]),
    "raw response": lambda c: _raw(c),
}


async def _raw(client: AsyncOpenAI) -> Any:
    raw = await client.chat.completions.with_raw_response.create(model="emulated", messages=HI, max_tokens=3)
    return [raw.status_code, raw.headers["content-type"], plain(raw.parse())]


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_gives_the_same_object(
    name: str, both: tuple[AsyncOpenAI, AsyncOpenAI, Running]
) -> None:
    direct, through, _ = both
    # asked once beforehand, so that the engine's cache is the same for both
    await CALLS[name](direct)
    assert plain(await CALLS[name](direct)) == plain(await CALLS[name](through))


STREAMS: dict[str, Call] = {
    "chat": lambda c: collected(
        c.chat.completions.create(model="emulated", messages=HI, max_tokens=12, stream=True)
    ),
    "chat with usage": lambda c: collected(
        c.chat.completions.create(
            model="emulated", messages=HI, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    ),
    "a tool call": lambda c: collected(
        c.chat.completions.create(
            model="emulated", messages=[{"role": "user", "content": SCRIPT}], tools=[TOOL], stream=True
        )
    ),
    "completions": lambda c: collected(
        c.completions.create(model="emulated", prompt="once upon", max_tokens=8, stream=True)
    ),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_says_the_same(name: str, both: tuple[AsyncOpenAI, AsyncOpenAI, Running]) -> None:
    direct, through, _ = both
    await STREAMS[name](direct)
    mine, theirs = await STREAMS[name](direct), await STREAMS[name](through)
    assert await joined(mine) == await joined(theirs)


async def test_structured_output_is_parsed_alike(both: tuple[AsyncOpenAI, AsyncOpenAI, Running]) -> None:
    messages: Any = [
        {"role": "user", "content": 'agentserve-script: [{"text": "{\\"ok\\": true}"}]'},
    ]
    for client in both[:2]:
        parsed = await client.chat.completions.parse(
            model="emulated", messages=messages, response_format=Answer
        )
        assert parsed.choices[0].message.parsed == Answer(ok=True)


async def test_a_refusal_raises_the_same_exception(both: tuple[AsyncOpenAI, AsyncOpenAI, Running]) -> None:
    bodies = []
    for client in both[:2]:
        with pytest.raises(BadRequestError) as refused:
            await client.chat.completions.create(model="emulated", messages=HI, max_tokens=-1)
        bodies.append(refused.value.body)
        with pytest.raises(NotFoundError):
            await client.chat.completions.create(model="emulated-not", messages=HI)
    assert bodies[0] == bodies[1]


async def test_the_synchronous_client_works_alike(both: tuple[AsyncOpenAI, AsyncOpenAI, Running]) -> None:
    _, _, running = both

    def ask() -> tuple[str | None, list[str]]:
        with OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
            whole = client.chat.completions.create(model="emulated", messages=HI, max_tokens=12)
            parts = client.chat.completions.create(model="emulated", messages=HI, max_tokens=12, stream=True)
            return whole.choices[0].message.content, [c.choices[0].delta.content or "" for c in parts]

    whole, parts = await asyncio.to_thread(ask)
    assert whole == "".join(parts)


async def test_an_agent_holds_a_conversation_with_tools_and_is_one_program(
    both: tuple[AsyncOpenAI, AsyncOpenAI, Running],
) -> None:
    _, client, running = both
    messages: Any = [{"role": "user", "content": SCRIPT}]
    for _ in range(2):
        reply = await client.chat.completions.create(model="emulated", messages=messages, tools=[TOOL])
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        messages += [
            {"role": "tool", "tool_call_id": c.id, "content": "found"} for c in message.tool_calls or ()
        ]
    await running.quiet()
    assert [row["tools"] for row in running.books.steps] == [("search",), ()]
    assert len({row["program"] for row in running.books.steps}) == 1


async def test_the_anthropic_client_talks_to_an_engine_that_only_knows_chat(
    both: tuple[AsyncOpenAI, AsyncOpenAI, Running],
) -> None:
    _, _, running = both
    tool: Any = {"name": "search", "input_schema": TOOL["function"]["parameters"]}
    async with AsyncAnthropic(base_url=running.url, api_key="any", max_retries=0) as client:
        asked: Any = {
            "model": "emulated", "max_tokens": 200, "tools": [tool], "messages": [{"role": "user", "content": SCRIPT}],
        }  # fmt: skip
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        counted = await client.messages.count_tokens(
            model="emulated", messages=asked["messages"], tools=asked["tools"]
        )
        assert [m.id async for m in client.models.list()] == ["emulated"]
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert [plain(b) for b in whole.content] == [plain(b) for b in streamed.content]
    assert counted.input_tokens > 0


async def test_the_responses_client_talks_to_an_engine_that_only_knows_chat(
    both: tuple[AsyncOpenAI, AsyncOpenAI, Running],
) -> None:
    _, client, _ = both
    tool: Any = {
        "type": "function",
        "name": "search",
        "parameters": TOOL["function"]["parameters"],
        "strict": False,
    }
    first = await client.responses.create(model="emulated", input=SCRIPT, tools=[tool])
    call: Any = first.output[0]
    assert (call.type, call.name) == ("function_call", "search")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "found"}]
    second = await client.responses.create(
        model="emulated", previous_response_id=first.id, input=result, tools=[tool]
    )
    assert second.output_text == '{"ok": true}'
    async with client.responses.stream(model="emulated", input="hello", max_output_tokens=9) as stream:
        events = [event.type async for event in stream]
    assert events[:2] == ["response.created", "response.in_progress"]
    assert events[-1] in ("response.completed", "response.incomplete")
    assert (await client.models.retrieve("emulated")).id == "emulated"
