"""What the real clients do by themselves meets the gateway's answers: they raise the right exception, wait as told and
send again, give up in time, and run tools in a loop of their own; each of it is one step of one program."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from agentserve.config import EngineSettings, LimitSettings, Settings, TenantSettings
from agentserve.live.auth import READ, Caller, ListedKeys
from tests.live.conftest import (
    Running,
    ScriptedEngine,
    Serve,
    answers,
    delta,
    raw,
    sse,
    streams,
    until,
)
from tests.live.test_clients import HI, SCRIPT, served

KEYS = {"as-a": Caller(tenant="a"), "as-r": Caller(tenant="ops", scopes=frozenset({READ}))}
MESSAGE: Any = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
    "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 3, "output_tokens": 1},
}  # fmt: skip


class Clients:
    """The two libraries' clients of a gateway; each is closed with the test."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack

    async def openai(self, running: Running, key: str = "as-a", **options: Any) -> AsyncOpenAI:
        made = AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, **{"max_retries": 0, **options})
        return await self._stack.enter_async_context(made)

    async def anthropic(self, running: Running, key: str = "as-a", **options: Any) -> AsyncAnthropic:
        made = AsyncAnthropic(base_url=running.url, api_key=key, **{"max_retries": 0, **options})
        return await self._stack.enter_async_context(made)


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with contextlib.AsyncExitStack() as stack:
        yield Clients(stack)


@pytest.fixture
async def limited(engine: ScriptedEngine, serve: Serve) -> Running:
    """A gateway with keys, a tenant of two requests a minute, and small bodies."""
    settings = Settings(
        engines=(EngineSettings(id="e1", url=engine.url, models=("m",)),),
        tenants=(TenantSettings(id="a", requests_per_minute=2),),
        limits=LimitSettings(body_bytes_max=10_000),
    )
    return await serve(settings=settings, keys=ListedKeys.of(KEYS))


async def raised(call: Awaitable[Any]) -> Any:
    """The exception that a client makes of the answer."""
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
        await call
    return caught.value


async def test_openais_client_raises_its_own_exception_for_each_refusal(
    limited: Running, clients: Clients
) -> None:
    async def ask(key: str = "as-a", model: str = "m") -> Any:
        client = await clients.openai(limited, key)
        return await client.chat.completions.create(model=model, messages=HI)

    for key, model, kind, code in (
        ("as-unknown", "m", openai.AuthenticationError, "not_authorised"),
        ("as-r", "m", openai.PermissionDeniedError, "not_authorised"),
        ("as-a", "x", openai.NotFoundError, "not_found"),
    ):
        error = await raised(ask(key, model))
        assert type(error) is kind
        assert error.code == code
        assert error.message
    await ask()
    too_many = await raised(ask())
    assert type(too_many) is openai.RateLimitError
    assert 1 <= int(too_many.response.headers["retry-after"]) <= 60
    assert too_many.type == "rate_limit_error"


async def test_openais_client_is_told_which_field_is_wrong_and_what_is_too_large(
    limited: Running, clients: Clients
) -> None:
    client = await clients.openai(limited)
    asked: Any = {"model": "m", "input": "x", "previous_response_id": "a", "conversation": "b"}
    wrong = await raised(client.responses.create(**asked))
    assert type(wrong) is openai.BadRequestError
    assert wrong.param == "conversation"
    large = await raised(client.embeddings.create(model="m", input="x" * 20_000))
    assert large.status_code == 413
    assert large.type == "invalid_request_error"


async def test_anthropics_client_raises_its_own_exception_for_each_refusal(
    limited: Running, clients: Clients
) -> None:
    async def ask(key: str = "as-a", model: str = "m", system: str = "") -> Any:
        client = await clients.anthropic(limited, key)
        return await client.messages.create(model=model, max_tokens=5, messages=HI, system=system)

    for key, model, system, kind, word in (
        ("as-unknown", "m", "", anthropic.AuthenticationError, "authentication_error"),
        ("as-r", "m", "", anthropic.PermissionDeniedError, "permission_error"),
        ("as-a", "m", "x" * 20_000, anthropic.RequestTooLargeError, "request_too_large"),
        ("as-a", "x", "", anthropic.NotFoundError, "not_found_error"),
        ("as-a", "x", "", anthropic.NotFoundError, "not_found_error"),
        ("as-a", "m", "", anthropic.RateLimitError, "rate_limit_error"),
    ):
        error = await raised(ask(key, model, system))
        assert isinstance(error, kind)
        body: Any = error.body
        assert body["error"]["type"] == word
    assert int(error.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_what_openais_client_sends_again_by_itself_is_the_same_step(
    status: int, engine: ScriptedEngine, serve: Serve, clients: Clients
) -> None:
    running = await serve(engine)
    engine.script.append(answers(status, {"error": {"message": "later"}}, "retry-after-ms: 1\r\n"))
    client = await clients.openai(running, max_retries=2)
    reply = await client.chat.completions.create(model="m", messages=HI)
    assert reply.choices[0].message.content == "hello"
    assert [asked.headers.get("x-stainless-retry-count") for asked in engine.asked] == ["0", "1"]
    await running.quiet()
    rows = running.books.steps
    assert len({row["program"] for row in rows}) == 1
    assert [row["relation"] for row in rows] == ["new", "retry"]


async def test_clients_wait_as_the_gateway_tells_them_and_get_through(
    engine: ScriptedEngine, serve: Serve, clients: Clients
) -> None:
    tenant = TenantSettings(id="default", requests_per_minute=60)
    settings = Settings(tenants=(tenant,), engines=(EngineSettings(id="e1", url=engine.url),))
    running = await serve(settings=settings)
    async with (
        await clients.openai(running, max_retries=9) as patient,
        await clients.anthropic(running, max_retries=9) as other,
    ):
        await asyncio.gather(*(patient.models.list() for _ in range(3)))  # these are not counted
        await asyncio.gather(*(patient.chat.completions.create(model="m", messages=HI) for _ in range(60)))
        engine.otherwise = answers(200, MESSAGE)
        last = await other.messages.create(model="m", max_tokens=5, messages=HI)
    (text,) = last.content
    assert isinstance(text, anthropic.types.TextBlock)
    assert text.text == "hello"
    assert len(engine.asked) == 61


async def test_a_gateway_whose_engine_comes_back_is_worth_the_clients_wait(
    engine: ScriptedEngine, serve: Serve, clients: Clients
) -> None:
    running = await serve(engine)
    await engine.stop()
    await until(lambda: not running.gateway.engines.reachable("m"))
    refused = await raised((await clients.openai(running)).chat.completions.create(model="m", messages=HI))
    assert (type(refused), refused.status_code) == (openai.InternalServerError, 503)
    overloaded = await raised(
        (await clients.anthropic(running)).messages.create(model="m", max_tokens=5, messages=HI)
    )
    assert overloaded.body["error"]["type"] == "overloaded_error"
    assert int(overloaded.response.headers["retry-after"]) >= 1
    waiting = asyncio.ensure_future(
        (await clients.openai(running, max_retries=9)).chat.completions.create(model="m", messages=HI)
    )
    await engine.start()
    assert (await waiting).choices[0].message.content == "hello"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_gives_up_in_time_frees_its_step(
    streamed: bool, engine: ScriptedEngine, serve: Serve, clients: Clients
) -> None:
    running = await serve(engine)
    engine.otherwise = raw(hang=True)
    client, claude = await clients.openai(running, timeout=0.3), await clients.anthropic(running, timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(model="m", messages=HI, stream=streamed)
    with pytest.raises(anthropic.APITimeoutError):
        await claude.messages.create(model="m", max_tokens=5, messages=HI, stream=streamed)
    await running.quiet()
    assert [row["outcome"] for row in running.books.steps] == ["gone", "gone"]


async def test_an_error_in_mid_stream_is_the_clients_own_exception(
    engine: ScriptedEngine, serve: Serve, clients: Clients
) -> None:
    running = await serve(engine)
    engine.otherwise = streams(sse(delta("a"), done=False), pause_s=0.05, end=False)
    stream = await (await clients.openai(running)).chat.completions.create(
        model="m", messages=HI, stream=True
    )
    assert (await anext(stream)).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError, match="engine"):
        await anext(stream)
    await running.quiet()


async def test_anthropics_tool_runner_is_one_program_and_ends_as_it_does_at_the_engine(serve: Serve) -> None:
    seen = []
    async with served() as port:
        url = f"http://127.0.0.1:{port}"
        running = await serve(settings=Settings(engines=(EngineSettings(id="e1", url=url),)))
        for base in (url, running.url):
            looked_up: list[str] = []

            @anthropic.beta_async_tool
            async def search(q: str, n: int = 1) -> str:
                """Look something up.

                Args:
                    q: what
                    n: how many
                """
                looked_up.append(f"{q}{n}")  # noqa: B023 - run before the next turn of the loop
                return "found"

            async with AsyncAnthropic(base_url=base, api_key="any", max_retries=0) as client:
                runner = client.beta.messages.tool_runner(
                    model="emulated",
                    max_tokens=99,
                    tools=[search],
                    messages=[{"role": "user", "content": SCRIPT}],
                )
                last = await runner.until_done()
            seen.append([looked_up, last.stop_reason, [block.model_dump()["text"] for block in last.content]])
        await running.quiet()
    assert seen[0] == seen[1]
    assert seen[1][0] == ["x2"]
    rows = running.books.steps
    assert [row["tools"] for row in rows] == [("search",), ()]
    assert len({row["program"] for row in rows}) == 1
