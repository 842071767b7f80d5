"""Engines that answer early, late, twice or with more than was asked: the client gets one answer or one clear error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from agentserve.config import EngineSettings, LimitSettings, Settings
from tests.live.conftest import ScriptedEngine, Serve, answers, chat_reply, delta, raw, sse, streams, until

LATE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = json.dumps(chat_reply("hello")).encode()


async def test_an_engine_that_drips_is_ended_by_the_overall_deadline(
    engine: ScriptedEngine, serve: Serve
) -> None:
    limits = LimitSettings(overall_timeout_s=1.0, idle_stream_timeout_s=30.0)
    running = await serve(engine, limits=limits)
    engine.otherwise = streams(*[b"%c" % b for b in sse(delta("x" * 500))], pause_s=0.05)
    async with asyncio.timeout(25.0):  # at this pace all of it would take longer
        try:
            said = (await running.chat(stream=True)).content
        except httpx.RemoteProtocolError:
            said = b""
    assert b"[DONE]" not in said
    await running.quiet()


async def test_an_engine_that_answers_before_it_has_read_is_heard(
    engine: ScriptedEngine, serve: Serve
) -> None:
    refusal = b'{"error":{"message":"too long for me"}}'
    closed = asyncio.Event()

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 413 X\r\ncontent-type: application/json\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(refusal), refusal))
        await writer.drain()
        await answered.wait()
        writer.transport.abort()
        closed.set()

    answered = asyncio.Event()
    server = await asyncio.start_server(hasty, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    running = await serve(settings=Settings(engines=(EngineSettings(id="hasty", url=url),)))
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 4_000_000}]}
    reply = await running.client.post("/v1/chat/completions", json=body, timeout=60.0)
    assert (reply.status_code, reply.content) == (413, refusal)
    await running.quiet()
    answered.set()
    await closed.wait()
    server.close()


async def test_what_follows_a_whole_reply_is_nobodys_answer(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    forged = LATE + b"content-length: 9\r\n\r\n" + b'"forged!"'
    for trailing in (b"garbage", b"\r\n\r\n", forged):
        head = LATE + b"content-length: %d\r\n\r\n" % len(WHOLE)
        engine.script.append(raw(head + WHOLE + trailing))
        assert (await running.chat()).content == WHOLE
        assert (await running.chat()).content == WHOLE
    engine.script.append(raw(LATE + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE, forged))
    assert (await running.chat()).content == WHOLE
    assert (await running.chat()).content == WHOLE
    await running.quiet()


@pytest.mark.parametrize(
    "interim", [b"100 Continue", b"102 Processing", b"103 Early Hints\r\nlink: </x>; rel=preload"]
)
async def test_interim_answers_do_not_reach_the_client(
    interim: bytes, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    once = b"HTTP/1.1 " + interim + b"\r\n\r\n"
    engine.script.append(raw(once * 3, LATE + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE))
    reply = await running.chat()
    assert (reply.status_code, reply.content) == (200, WHOLE)
    assert "link" not in reply.headers


async def test_an_engine_that_switches_protocols_is_a_clear_error(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = raw(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello"
    )
    assert (await running.chat()).status_code == 502
    await running.quiet()


async def test_an_engine_that_dies_of_a_request_gets_it_a_bounded_number_of_times(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    held = asyncio.Event()

    async def holds(asked: Any, reader: Any, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        await answers(200, chat_reply("hello"))(asked, reader, writer)

    engine.otherwise = holds
    warmed = [asyncio.ensure_future(running.chat()) for _ in range(16)]
    await until(lambda: len(engine.asked) == 16)
    held.set()
    await asyncio.gather(*warmed)  # sixteen connections lie idle now, each as good as the next
    engine.asked.clear()
    engine.otherwise = raw(close=True)
    assert (await running.chat()).status_code == 502
    assert len(engine.asked) <= 4  # twice elsewhere, each once more where the connection may have been stale
    await running.quiet()
