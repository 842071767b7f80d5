"""Attackers, and operators without luck: each gets a clear answer, and the gateway goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import httpx
import pytest

from agentserve.config import EngineSettings, Settings
from agentserve.live.auth import Caller, ListedKeys
from tests.live.conftest import ScriptedEngine, Serve, answers, chat_reply, delta, raw, sse, until


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_an_engines_redirect_is_neither_followed_nor_passed_on(
    status: int, engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = answers(status, b"", f"location: {other.url}/v1/chat/completions\r\n")
    reply = await running.chat()
    assert reply.status_code == 502
    assert "redirect" in reply.json()["error"]["message"]
    assert "location" not in reply.headers
    assert other.asked == []
    await running.quiet()


async def test_a_web_page_in_an_engines_place_is_a_clear_error(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    page = b"<html>Please sign in</html>"
    engine.otherwise = raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: %d\r\n\r\n%b"
        % (len(page), page)
    )
    reply = await running.chat()
    assert reply.status_code == 502
    assert "web page" in reply.json()["error"]["message"]
    await running.quiet()


async def test_a_gateway_that_is_its_own_engine_says_so(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    await running.gateway.engines.add(EngineSettings(id="itself", url=running.url))
    await running.gateway.engines.remove("e1")
    await until(lambda: running.gateway.engines.reachable("m"))
    reply = await running.chat()
    assert reply.status_code == 400
    assert "this gateway itself" in reply.json()["error"]["message"]
    await running.quiet()


async def test_gateways_in_a_row_pass_a_request_on(engine: ScriptedEngine, serve: Serve) -> None:
    behind = await serve(engine)
    before = await serve(settings=Settings(engines=(EngineSettings(id="next", url=behind.url),)))
    assert (await before.chat()).json()["choices"][0]["message"]["content"] == "hello"
    assert engine.asked[-1].headers["via"].count("agentserve-") == 2


@pytest.mark.parametrize("depth", [500, 900, 2_000, 100_000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"])
async def test_json_of_any_depth_gets_an_answer(
    path: str, depth: int, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    nested = "[" * depth + "]" * depth
    for field in ("messages", "input", "tools", "metadata"):
        reply = await running.client.post(path, content=f'{{"model":"m","{field}":{nested}}}')
        assert reply.status_code in (200, 400), reply.text[:200]
    assert (await running.chat()).status_code == 200
    await running.quiet()


FRAMES = 16  # how many more than decoding a body its reading may take


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/conversations",
    ],
)
async def test_json_that_is_just_not_too_deep_to_decode_gets_an_answer(
    path: str, engine: ScriptedEngine, serve: Serve
) -> None:
    """How deep that is depends on the interpreter; what walks the body afterwards may not end in a fault of ours."""
    running = await serve(engine)

    async def asked(field: str) -> httpx.Response:
        return await running.client.post(path, content=f'{{"model":"m",{field}}}')

    least, most = 100, 100_000
    while least + 1 < most:
        depth = (least + most) // 2
        read = "valid JSON" not in (await asked(f'"unknown":{"[" * depth + "]" * depth}')).text
        least, most = (depth, most) if read else (least, depth)
    for depth in range(least - FRAMES, least + 1):
        nested = "[" * depth + "]" * depth
        for field in (
            f'"messages":{nested}',
            f'"messages":[{{"role":"user","content":{nested}}}]',
            f'"input":[1,{nested}]',
            f'"input":{nested}',
            f'"tools":{nested}',
            f'"metadata":{nested}',
            f'"stream":true,"stream_options":{nested}',
        ):
            reply = await asked(field)
            assert reply.status_code in (200, 400), (depth, field[:30], reply.text[:200])
    await running.quiet()


@pytest.mark.parametrize("field", ["error", "usage", "choices"])
async def test_an_engines_stream_that_cannot_be_read_reaches_the_client_whole(
    field: str, engine: ScriptedEngine, serve: Serve
) -> None:
    """Some depth can be decoded and not be looked at; the client's bytes do not hang on that."""
    running = await serve(engine)
    for depth in [*range(880, 1_000), *range(9_850, 10_000, 2), 20_000]:
        event = f'data: {{"{field}":{"[" * depth + "]" * depth}}}\n\n'.encode()
        body = sse(delta("a"))[: -len(b"data: [DONE]\n\n")] + event * 3 + sse(delta("b", "stop"))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
        engine.script.append(raw(head + body))
        reply = await running.client.post(
            "/v1/chat/completions",
            json={
                "model": "m",
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": "hi"}],
            },
        )
        assert reply.content == body, depth
    await running.quiet()


async def test_names_cannot_forge_lines_of_the_log_or_headers(
    engine: ScriptedEngine, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    running = await serve(engine)
    forged = "m\r\nx-forged: 1\n2026-01-01 CRITICAL agentserve all is lost"
    with caplog.at_level(logging.DEBUG):
        for headers, model in (({}, forged), ({"x-agentserve-program-id": "a b\tc"}, "m")):
            reply = await running.client.post(
                "/v1/chat/completions", json={"model": model, "messages": [], "user": forged}, headers=headers
            )
            assert "x-forged" not in reply.headers
    assert not [line for record in caplog.records for line in record.getMessage().splitlines()[1:]
                if "CRITICAL" in line]  # fmt: skip
    await running.quiet()


async def test_a_key_that_is_revoked_in_mid_stream_ends_with_the_stream(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, keys=ListedKeys.of({"acme": Caller(tenant="a", key_id="k1")}))
    go_on = asyncio.Event()

    async def slowly(asked: Any, reader: Any, writer: asyncio.StreamWriter) -> None:
        first, last = sse(delta("a"), done=False), sse(delta("b", "stop"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b"
                     % (len(first) + len(last), first))  # fmt: skip
        await writer.drain()
        await go_on.wait()
        writer.write(last)

    engine.otherwise = slowly
    headers = {"authorization": "Bearer acme"}
    body = {"model": "m", "messages": [], "stream": True, "stream_options": {"include_usage": True}}
    async with running.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
        pieces = reply.aiter_bytes()
        got = await anext(pieces)
        gateway: Any = running.gateway
        gateway.relay._keys = ListedKeys(())
        refused = await running.client.post("/v1/chat/completions", json=body, headers=headers)
        assert refused.status_code == 401
        go_on.set()
        got += b"".join([piece async for piece in pieces])
    assert got.endswith(b"data: [DONE]\n\n")
    await running.quiet()


async def test_a_history_of_a_hundred_thousand_messages_is_one_step(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = answers(200, chat_reply("hello"))
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"message {i}"} for i in range(128_000)]
    body = json.dumps({"model": "m", "messages": turns})
    async with httpx.AsyncClient(base_url=running.url, timeout=60.0) as client:
        reply = await client.post("/v1/chat/completions", content=body)
    assert reply.status_code == 200
    assert engine.asked[-1].body == body.encode()
    await running.quiet()


async def test_a_wall_clock_that_goes_back_costs_nothing(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    await running.chat()
    gateway: Any = running.gateway
    gateway.clock = gateway.relay._clock = lambda: time.time() - 86_400.0
    reply = await running.chat()
    assert reply.status_code == 200
    assert float(reply.headers["x-agentserve-overhead-ms"]) >= 0.0
    await running.quiet()
    assert all((row["gap_s"] or 0.0) >= 0.0 for row in running.books.steps)


async def test_a_client_of_one_byte_at_a_time_does_not_hold_anybody_up(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for byte in b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
        assert not running.gateway.relay.open
    assert (await running.chat()).status_code == 200
    writer.close()
