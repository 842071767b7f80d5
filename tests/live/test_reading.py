"""Requests read: what is no request is refused, and of long ones no byte is lost."""

from __future__ import annotations

import asyncio
import json

from agentserve.config import LimitSettings
from tests.live.conftest import (
    Asked,
    ScriptedEngine,
    Serve,
    answers,
    chat_reply,
    until,
)


async def test_a_body_that_is_no_json_object_is_refused_in_the_protocols_shape(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    for path, content in (
        ("/v1/chat/completions", b"{"),
        ("/v1/messages", b"[1]"),
        ("/v1/responses", b"\xff"),
    ):
        reply = await running.client.post(path, content=content)
        assert reply.status_code == 400
        error = reply.json()
        assert (error["type"] == "error") if path == "/v1/messages" else ("param" in error["error"])
    assert not engine.asked


async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, limits=LimitSettings(body_bytes_max=1000))
    reply = await running.chat(messages=[{"role": "user", "content": "x" * 2000}])
    assert reply.status_code == 413
    assert not engine.asked


async def test_a_long_conversation_that_goes_on_reaches_the_engine_as_it_was_sent(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    text = b'{ "model":"m", "messages" : [ {"role":"user","content":"%b"}' % (b"long \xc3\xa9" * 4_000)
    for turn in range(3):
        text += b' , {"role":"assistant","content":"hello"}, {"role":"user","content":"%d"}' % turn
        sent = text + b' ], "unknown": 1.50 }'
        reply = await running.client.post("/p/long/v1/chat/completions", content=sent)
        assert reply.status_code == 200
        assert engine.asked[-1].body == sent
    assert [row["relation"] for row in running.books.steps] == ["new", "continues", "continues"]
    broken = await running.client.post("/p/long/v1/chat/completions", content=text + b" ,], }")
    assert broken.status_code == 400


async def test_a_long_conversation_is_whole_for_an_adapter_that_changes_it_and_for_a_second_engine(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, other, extra={"adds": {"rank": 1}})
    messages = [{"role": "user", "content": "long é" * 4_000}]
    for turn in range(3):
        messages += [{"role": "assistant", "content": "hello"}, {"role": "user", "content": str(turn)}]
        if turn == 2:
            for one in (engine, other):
                one.otherwise = answers(503, {"error": {"message": "queue full"}})
        body = {"messages": messages, "model": "m"}
        reply = await running.client.post("/p/long/v1/chat/completions", json=body)
        asked = [json.loads(one.asked[-1].body) for one in (engine, other) if one.asked]
        assert {**body, "rank": 1} in asked
        assert reply.status_code == (200 if turn < 2 else 503)
    assert all(json.loads(one.asked[-1].body) == {**body, "rank": 1} for one in (engine, other))


async def test_a_step_that_waits_keeps_its_bytes_alone_and_is_sent_as_it_came(
    engine: ScriptedEngine, serve: Serve
) -> None:
    release = asyncio.Event()
    answer = answers(200, chat_reply("hello"))

    async def when_told(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await answer(asked, reader, writer)

    engine.script.append(when_told)
    running = await serve(engine, extra={"adds": {"rank": 1}, "kv_tokens": 12_000})
    bodies = [
        {"model": "m", "messages": [{"role": "user", "content": f"{n} {'long ' * 8_000}"}]} for n in (1, 2)
    ]
    ours = running.gateway.relay
    asking = [asyncio.create_task(running.client.post("/v1/chat/completions", json=body)) for body in bodies]
    await until(lambda: engine.asked and running.gateway.driver.scheduler.board.waiting)
    (waiting,) = [x for x in ours.open if not x.attempts]
    assert waiting.body == {}
    assert waiting.raw
    release.set()
    assert [(await reply).status_code for reply in asking] == [200, 200]
    got = [asked.json for asked in engine.asked]
    assert sorted(got, key=str) == [{**body, "rank": 1} for body in bodies]
