"""What a step's time is told to have been, its wait and our own, beside what engine and client saw."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from agentserve.config import EngineSettings, Settings
from agentserve.core.board import Limits
from tests.live.conftest import (
    Asked,
    Behaviour,
    Running,
    ScriptedEngine,
    Serve,
    answers,
    chat_reply,
    raw,
    until,
)
from tests.live.test_waiting import ask, held_until

HELD_S = 0.3


def after(seconds: float, then: Behaviour) -> Behaviour:
    """An engine that takes its time."""

    async def behave(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await then(asked, reader, writer)

    return behave


def told_ms(reply: httpx.Response, what: str) -> float:
    return float(reply.headers[f"x-agentserve-{what}-ms"])


def full(engine: ScriptedEngine) -> Settings:
    """One long step fills the engine."""
    return Settings(engines=(EngineSettings(id="e1", url=engine.url, kv_tokens=8_000),))


async def filled(
    running: Running, engine: ScriptedEngine, opened: asyncio.Event
) -> asyncio.Task[httpx.Response]:
    """A step that runs until it may end."""
    engine.otherwise = held_until(opened)
    first = asyncio.create_task(ask(running, "a"))
    await until(lambda: any(asked.method == "POST" for asked in engine.asked))
    return first


@pytest.mark.parametrize("breaks", [raw(close=True), answers(503, {"error": "busy"})])
async def test_what_a_failed_try_took_is_neither_our_own_time_nor_a_wait(
    breaks: Behaviour, engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = after(HELD_S, breaks)
    other.otherwise = answers(200, chat_reply("fine"))
    running = await serve(engine, other, policy="fifo")
    began = time.perf_counter()
    reply = await running.chat()
    took_ms = (time.perf_counter() - began) * 1e3
    assert reply.headers["x-agentserve-engine"] == "e2"
    assert told_ms(reply, "overhead") + told_ms(reply, "queue") <= took_ms - HELD_S * 1e3
    await running.quiet()
    (step,) = running.books.steps
    (attempt,) = step["tries"]
    assert attempt.engine == "e1"
    assert attempt.ended_at - attempt.sent_at >= HELD_S * 0.99
    sent_after_s = step["dispatched_at"] - step["arrived_at"]
    parts_s = step["queue_s"] + step["overhead_s"] + attempt.ended_at - attempt.sent_at
    assert parts_s == pytest.approx(sent_after_s, abs=1e-5)


async def test_an_engine_that_fails_for_good_is_not_told_as_our_own_time(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = after(HELD_S, raw(close=True))
    running = await serve(engine)
    began = time.perf_counter()
    reply = await running.chat()
    took_ms = (time.perf_counter() - began) * 1e3
    assert reply.status_code == 502
    assert told_ms(reply, "overhead") <= took_ms - 2 * HELD_S * 1e3
    await running.quiet()
    (step,) = running.books.steps
    assert len(step["tries"]) == 2
    whole_s = step["queue_s"] + step["overhead_s"] + sum(t.ended_at - t.sent_at for t in step["tries"])
    assert whole_s == pytest.approx(step["ended_at"] - step["arrived_at"], abs=1e-5)


async def test_a_step_that_waited_in_vain_is_told_as_one_that_waited(
    engine: ScriptedEngine, serve: Serve
) -> None:
    opened = asyncio.Event()
    running = await serve(settings=full(engine), core=Limits(queue_timeout_s=HELD_S))
    first = await filled(running, engine, opened)
    reply = await ask(running, "b")
    assert reply.status_code == 503
    assert told_ms(reply, "queue") >= HELD_S * 0.99e3
    opened.set()
    await first
    await running.quiet()
    step = next(step for step in running.books.steps if step["program"].endswith("b"))
    assert (step["outcome"], step["dispatched_at"]) == ("rejected", None)
    assert step["queue_s"] >= HELD_S * 0.99
    assert step["queue_s"] + step["overhead_s"] == pytest.approx(
        step["ended_at"] - step["arrived_at"], abs=1e-5
    )


async def test_a_client_that_left_while_its_step_waited_had_waited(
    engine: ScriptedEngine, serve: Serve
) -> None:
    opened = asyncio.Event()
    running = await serve(settings=full(engine))
    first = await filled(running, engine, opened)
    board = running.gateway.driver.scheduler.board
    second = asyncio.create_task(ask(running, "b"))
    await until(lambda: len(board.waiting) == 1)
    await asyncio.sleep(HELD_S)
    second.cancel()
    await until(lambda: not board.waiting)
    opened.set()
    await first
    await running.quiet()
    step = next(step for step in running.books.steps if step["program"].endswith("b"))
    assert step["outcome"] == "gone"
    assert step["queue_s"] >= HELD_S


async def test_a_step_that_found_room_at_once_did_not_wait(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    replies = [await running.chat() for _ in range(20)]
    assert [told_ms(reply, "queue") for reply in replies] == [0.0] * 20
    assert all(told_ms(reply, "overhead") > 0.0 for reply in replies)
