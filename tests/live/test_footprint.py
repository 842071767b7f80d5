"""What a step leaves behind in memory when it is over: nothing that waits for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import httpx
import pytest

from agentserve.core.identity import CallEvidence, Item, ReplyEvidence, Resolver
from agentserve.core.identity.known import Program
from agentserve.live.app import HOUSEKEEPING_S
from agentserve.live.exchange import Exchange
from agentserve.live.request import Request
from agentserve.live.server import HttpConnection
from agentserve.live.upstream.connection import Connection
from tests.live.conftest import ScriptedEngine, Serve, answers, chat_reply, delta, raw, sse, streams, until


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left_behind() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, (Exchange, Request))]


async def asked_once_more(engine: ScriptedEngine) -> None:
    before = len(engine.asked)
    await until(lambda: len(engine.asked) > before)


def connections() -> int:
    return sum(isinstance(one, (Connection, HttpConnection)) for one in gc.get_objects())


def known() -> int:
    return sum(isinstance(one, Program) for one in gc.get_objects())


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("ending", ["whole", "streamed", "refused", "broken", "cut"])
async def test_a_step_that_is_over_is_freed_without_the_collector(
    ending: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = {
        "whole": answers(200, chat_reply("hello")),
        "streamed": streams(sse(delta("a"), delta("b", "stop"))),
        "refused": answers(400, {"error": {"message": "no"}}),
        "broken": raw(b"nonsense\r\n\r\n", close=True),
        "cut": streams(sse(delta("a"), done=False), end=False),
    }[ending]
    for _ in range(5):
        await running.chat(stream=ending in ("streamed", "cut"))
    await running.quiet()
    await until(lambda: not left_behind())


@pytest.mark.usefixtures("uncollected")
async def test_a_step_whose_client_left_is_freed_without_the_collector(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = raw(hang=True)
    asking = asyncio.create_task(running.chat())
    await until(lambda: engine.asked)
    asking.cancel()
    await asyncio.wait([asking])
    await running.quiet()
    await until(lambda: not left_behind())


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("ending", ["closed", "broken", "cut", "left"])
async def test_a_connection_that_is_gone_is_freed_without_the_collector(
    ending: str, engine: ScriptedEngine, serve: Serve
) -> None:
    before = connections()
    running = await serve(engine)
    engine.otherwise = {
        "closed": answers(200, chat_reply("hello"), "connection: close\r\n"),
        "broken": raw(b"nonsense\r\n\r\n", close=True),
        "cut": streams(sse(delta("a"), done=False), end=False),
        "left": raw(hang=True),
    }[ending]
    for _ in range(5):
        async with httpx.AsyncClient(base_url=running.url) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": ending == "cut"}
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            if ending == "left":
                await asked_once_more(engine)
                asking.cancel()
            await asyncio.wait([asking])
            asking.exception() if not asking.cancelled() else None
    await running.quiet()
    await until(lambda: connections() == before)


@pytest.mark.usefixtures("uncollected")
async def test_a_program_that_is_forgotten_is_freed_without_the_collector(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    gateway = running.gateway
    engine.otherwise = answers(200, chat_reply("hello"))
    for name in ("lead", "other"):
        for _ in range(2):
            body = {"model": "m", "messages": [{"role": "user", "content": f"I am {name}"}]}
            await running.client.post(f"/p/{name}/v1/chat/completions", json=body)
    await running.quiet()
    before = known()
    assert before >= 2
    gateway.keep_house(gateway.driver.now() + 1e6)
    await until(lambda: known() <= before - 2)


async def test_what_clients_said_is_forgotten_about_when_their_programs_are(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    gateway, canon = running.gateway, running.gateway.relay.reading.reader.canon
    engine.otherwise = answers(200, chat_reply("hello"))
    await running.chat()
    await running.chat()
    said = canon.canonicalised
    assert said == 1
    now, period_s = gateway.driver.now(), gateway.settings.scheduler.program_idle_s
    gateway.keep_house(now)
    await running.chat()
    assert canon.canonicalised == said
    gateway.keep_house(now + period_s)
    gateway.keep_house(now + period_s + 1.0)  # within the period: what was said in it stays
    await running.chat()
    assert canon.canonicalised == said
    gateway.keep_house(now + 2.5 * period_s)
    gateway.keep_house(now + 4.0 * period_s)
    await running.chat()
    assert canon.canonicalised == 2 * said


def test_silent_programs_are_forgotten_as_fast_as_they_come() -> None:
    resolver = Resolver(idle_s=60.0)
    for i in range(5_000):
        words = Item(role="user", digest=i + 1, size=20)
        begun = resolver.resolve(CallEvidence(items=(words,)), tenant="a", now=0.0)
        reply = ReplyEvidence(items=(Item(role="assistant", digest=-i - 1, size=20),), finish="stop")
        resolver.replied(begun, reply, 1.0)
    assert len(resolver) == 5_000
    now = 100.0
    while now < 110.0:  # 500 of them a second
        resolver.expire(now)
        now += HOUSEKEEPING_S
    assert len(resolver) == 0
