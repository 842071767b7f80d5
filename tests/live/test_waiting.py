"""Steps that wait for a place hold their requests, and what they hold together is bounded."""

from __future__ import annotations

import asyncio

import httpx

from agentserve.config import EngineSettings, LimitSettings, Settings
from agentserve.core.board import Limits
from tests.live.conftest import Asked, Behaviour, Running, ScriptedEngine, Serve, answers, chat_reply, until

WORDS = 1_200  # a prompt of about so many tokens fills the engine
HELD = 30_000  # bytes: of one such prompt that waits, and not of two


async def ask(running: Running, program: str) -> httpx.Response:
    """One long step of a program of its own."""
    body = {"model": "m", "messages": [{"role": "user", "content": f"{program} " * WORDS + "x" * 15_000}]}
    headers = {"x-agentserve-program-id": program}
    return await running.client.post("/v1/chat/completions", json=body, headers=headers, timeout=60.0)


def held_until(opened: asyncio.Event) -> Behaviour:
    """An engine that answers when it may."""
    reply = answers(200, chat_reply("hello"))

    async def behave(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await opened.wait()
        await reply(asked, reader, writer)

    return behave


Asking = asyncio.Task[httpx.Response]


async def one_runs_and_one_waits(
    running: Running, engine: ScriptedEngine
) -> tuple[asyncio.Event, Asking, Asking]:
    """Programs a and b: the engine is full of the one until the event, and the other waits for its place."""
    opened = asyncio.Event()
    engine.otherwise = held_until(opened)
    first = asyncio.create_task(ask(running, "a"))
    await until(lambda: any(asked.method == "POST" for asked in engine.asked))
    second = asyncio.create_task(ask(running, "b"))
    await until(lambda: len(running.gateway.driver.scheduler.board.waiting) == 1)
    return opened, first, second


async def test_requests_that_wait_are_bounded_in_bytes_and_those_that_need_not_wait_are_served(
    engine: ScriptedEngine, serve: Serve
) -> None:
    settings = Settings(
        limits=LimitSettings(waiting_bytes_max=HELD),
        engines=(EngineSettings(id="e1", url=engine.url, kv_tokens=8_000),),
    )
    running = await serve(settings=settings)
    opened, first, second = await one_runs_and_one_waits(running, engine)
    board = running.gateway.driver.scheduler.board

    refused = await ask(running, "c")
    assert refused.status_code == 503
    assert "hold too many bytes" in refused.text
    assert refused.headers["retry-after"] == "5"
    assert len(board.waiting) == 1

    opened.set()
    assert [(await first).status_code, (await second).status_code] == [200, 200]
    await running.quiet()
    assert (await ask(running, "c")).status_code == 200, "what had waited is not counted any more"


async def test_a_step_that_waited_in_vain_is_told_when_no_engine_is_there_and_not_of_places(
    engine: ScriptedEngine, serve: Serve
) -> None:
    settings = Settings(engines=(EngineSettings(id="e1", url=engine.url, kv_tokens=8_000),))
    running = await serve(settings=settings, core=Limits(queue_timeout_s=1.0))
    opened, first, second = await one_runs_and_one_waits(running, engine)
    board = running.gateway.driver.scheduler.board
    assert "no place came free in time" in (await second).text

    third = asyncio.create_task(ask(running, "c"))
    await until(lambda: len(board.waiting) == 1)
    (await running.client.post("/admin/v1/engines/e1/drain")).raise_for_status()
    refused = await third
    assert refused.status_code == 503
    assert "no engine for this model answers" in refused.text
    assert refused.headers["retry-after"] == "5"
    opened.set()
    assert (await first).status_code == 200
