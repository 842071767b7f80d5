"""What a step leaves behind in memory when it is over: nothing that waits for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from agentserve.live.exchange import Exchange
from agentserve.live.request import Request
from tests.live.conftest import ScriptedEngine, Serve, answers, chat_reply, delta, raw, sse, streams, until


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left_behind() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, (Exchange, Request))]


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
