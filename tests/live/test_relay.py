"""A step's way through the gateway: bytes, retries, disconnects, deadlines, books."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from agentserve.config import EngineSettings, LimitSettings, Settings
from agentserve.core import events as ev
from agentserve.live.breaker import STEPS_FAILED_MAX
from tests.live.conftest import (
    USAGE_CHUNK,
    ScriptedEngine,
    Serve,
    answers,
    chat_reply,
    delta,
    raw,
    sse,
    streams,
    until,
)


async def test_a_whole_reply_reaches_the_client_byte_by_byte(engine: ScriptedEngine, serve: Serve) -> None:
    body = b'{"id" : "x",  "choices":[{"index":0,"message":{"role":"assistant","content":"\\u00e9"}}] }'
    engine.script.append(answers(200, body))
    running = await serve(engine)
    reply = await running.chat()
    assert reply.content == body
    assert reply.status_code == 200


async def test_the_request_reaches_the_engine_byte_by_byte_when_nothing_has_to_change(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    sent = b'{ "model":"m", "messages" : [ {"role":"user","content":"h\xc3\xa9"} ], "unknown": 1.50 }'
    await running.client.post("/v1/chat/completions", content=sent)
    assert engine.asked[-1].body == sent
    assert engine.asked[-1].path == "/v1/chat/completions"


async def test_the_clients_credentials_and_our_control_headers_end_at_the_gateway(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    await running.client.post(
        "/v1/messages?beta=true",
        json={"model": "m", "max_tokens": 5, "messages": []},
        headers={
            "authorization": "Bearer secret",
            "x-api-key": "secret",
            "cookie": "secret",
            "x-agentserve-program-id": "run-1",
            "anthropic-beta": "context-1m",
            "connection": "keep-alive, x-private",
            "x-private": "secret",
            "te": "trailers",
        },
    )
    headers = engine.asked[-1].headers
    assert "secret" not in json.dumps(headers)
    assert not [name for name in headers if name.startswith("x-agentserve-")]
    assert headers["anthropic-beta"] == "context-1m"
    assert "te" not in headers
    assert engine.asked[-1].path == "/v1/messages?beta=true"


async def test_a_program_in_the_path_names_the_program_and_not_the_engines_path(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    reply = await running.client.post("/p/run-7/v1/chat/completions", json={"model": "m", "messages": []})
    assert reply.headers["x-agentserve-program"] == "run-7"
    assert engine.asked[-1].path == "/v1/chat/completions"


async def test_each_step_says_what_became_of_it_in_headers_and_books(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    reply = await running.chat()
    assert reply.headers["x-agentserve-engine"] == "e1"
    assert float(reply.headers["x-agentserve-confidence"]) > 0
    assert {"x-agentserve-identity", "x-agentserve-queue-ms", "x-agentserve-overhead-ms"} <= set(
        reply.headers
    )
    (row,) = running.books.steps
    assert (row["outcome"], row["status"], row["engine"]) == ("finished", 200, "e1")
    assert (row["prompt_tokens"], row["output_tokens"], row["cached_tokens"]) == (20, 5, 16)
    (finished,) = running.books.told(ev.StepFinished)
    assert finished.turn_done


async def test_usage_is_asked_for_and_its_event_kept_from_a_client_that_did_not_ask(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(streams(sse(delta("a"), delta("b", "stop"), USAGE_CHUNK)))
    running = await serve(engine)
    reply = await running.chat(stream=True)
    assert engine.asked[-1].json["stream_options"] == {"include_usage": True}
    assert reply.content == sse(delta("a"), delta("b", "stop"))
    await running.quiet()
    assert running.books.steps[-1]["prompt_tokens"] == 20


async def test_usage_that_the_client_asked_for_passes(engine: ScriptedEngine, serve: Serve) -> None:
    whole = sse(delta("a", "stop"), USAGE_CHUNK)
    engine.script.append(streams(whole))
    running = await serve(engine)
    reply = await running.chat(stream=True, stream_options={"include_usage": True})
    assert reply.content == whole


async def test_options_of_the_stream_that_lack_usage_keep_their_other_fields(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(streams(sse(delta("a", "stop"))))
    running = await serve(engine)
    await running.chat(stream=True, stream_options={"continuous_usage_stats": False})
    assert engine.asked[-1].json["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}


GOLDEN: dict[str, list[bytes]] = {
    "split in a character": [
        b'data: {"choices":[{"delta":{"content":"\xc3',
        b"\xa9\xf0\x9f",
        b'\x98\x80"}}]}\n\n',
    ],
    "split in an event": [b"da", b'ta: {"cho', b'ices":[]', b"}\n", b"\ndata: [DONE]\n\n"],
    "comments and keep-alives": [b": ping\n\n", b":\n\n", sse(delta("a", "stop")), b": bye\n\n"],
    "carriage returns": [b'data: {"choices":[]}\r\n', b"\r\ndata: [DO", b"NE]\r\n\r\n"],
    "reasoning fields": [
        sse(delta("", reasoning_content="hm"), delta("", reasoning="hm"), delta("a", "stop"))
    ],
    "tool call deltas": [
        sse(
            delta("", tool_calls=[{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]),
            delta("", tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
            delta("", tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
            delta("", "tool_calls"),
        )
    ],
    "an error in mid-stream": [
        sse(delta("a"), done=False),
        b'data: {"error":{"message":"boom","code":500}}\n\n',
    ],
    "no [DONE]": [sse(delta("a", "stop"), done=False)],
    "an event without its end": [sse(delta("a"), done=False), b'data: {"choices":'],
    "several data lines": [b'event: x\nid: 3\ndata: {"choices":\ndata: []}\n\n'],
    "an empty stream": [],
    "garbage": [b"\x00\xff\xfe not events at all", b"\n\n\n\n"],
}


@pytest.mark.parametrize("name", GOLDEN)
async def test_a_stream_passes_unchanged_however_it_is_cut(
    name: str, engine: ScriptedEngine, serve: Serve
) -> None:
    pieces = GOLDEN[name]
    engine.script.append(streams(*pieces, pause_s=0.002))
    running = await serve(engine)
    reply = await running.chat(stream=True)
    assert reply.content == b"".join(pieces)
    await running.quiet()
    assert running.books.steps[-1]["status"] == 200


async def test_tool_calls_of_a_reply_reach_the_scheduler(engine: ScriptedEngine, serve: Serve) -> None:
    engine.script.append(streams(*GOLDEN["tool call deltas"]))
    running = await serve(engine)
    await running.chat(stream=True, tools=[{"type": "function", "function": {"name": "f"}}])
    await running.quiet()
    (finished,) = running.books.told(ev.StepFinished)
    assert [(tool.id, tool.name) for tool in finished.tools] == [("c1", "f")]


async def test_an_engines_own_refusal_passes_unchanged(engine: ScriptedEngine, serve: Serve) -> None:
    refusal = {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "code": 400}}
    engine.script.append(answers(400, refusal, "x-ratelimit-remaining: 7\r\n"))
    running = await serve(engine)
    reply = await running.chat()
    assert (reply.status_code, reply.json()) == (400, refusal)
    assert reply.headers["x-ratelimit-remaining"] == "7"
    assert running.books.told(ev.StepFailed)[0].retryable is False


async def test_a_step_that_must_wait_after_its_engine_failed_is_sent_when_the_scheduler_says_so(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    settings = Settings(
        engines=(
            EngineSettings(id="e1", url=engine.url, models=("m",)),
            EngineSettings(id="e2", url=other.url, models=("n",)),
        )
    )
    running = await serve(settings=settings)
    looked = asyncio.Event()

    async def slowly() -> None:
        await looked.wait()

    running.adapter.before_load = slowly
    engine.script.append(raw(close=True))
    asking = asyncio.create_task(running.chat())
    board = running.gateway.driver.scheduler.board
    await until(lambda: board.waiting)  # until the engine was looked at, nothing goes there
    await asyncio.sleep(0.05)
    assert len(engine.asked) == 1
    looked.set()
    assert (await asking).status_code == 200
    assert [event.step for event in running.books.told(ev.StepFinished)]
    await running.quiet()


BROKEN: dict[str, Any] = {
    "closes before a byte": raw(close=True),
    "closes in its head": raw(b"HTTP/1.1 200 OK\r\ncontent-le", close=True),
    "answers garbage": raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n", close=True),
    "answers another protocol": raw(b"SSH-2.0-OpenSSH_9.2\r\n", close=True),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_step_whose_engine_breaks_before_a_byte_is_sent_elsewhere_once(
    name: str, engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = BROKEN[name]
    other.otherwise = answers(200, chat_reply("fine"))
    running = await serve(engine, other, policy="fifo")  # ties go to the first engine
    for _ in range(3):
        reply = await running.chat()
        assert reply.status_code == 200
        assert reply.json()["choices"][0]["message"]["content"] == "fine"
    assert engine.asked
    await running.quiet()


@pytest.mark.parametrize("name", BROKEN)
async def test_an_engine_that_keeps_breaking_is_a_clear_error(
    name: str, engine: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = BROKEN[name]
    running = await serve(engine)
    reply = await running.chat()
    assert reply.status_code == 502
    assert reply.json()["error"]["type"] == "server_error"
    assert len(engine.asked) == 2
    await running.quiet()
    assert running.books.steps[-1]["outcome"] == "failed"


async def test_a_step_is_never_sent_again_after_its_first_byte(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    cut = streams(sse(delta("a"), done=False), end=False)
    engine.otherwise = other.otherwise = cut
    running = await serve(engine, other)
    reply = await running.chat(stream=True)
    assert len(engine.asked) + len(other.asked) == 1
    events = reply.content.split(b"\n\n")
    assert json.loads(events[0][6:])["choices"][0]["delta"]["content"] == "a"
    assert "closed the connection" in json.loads(events[1][6:])["error"]["message"]
    await running.quiet()


async def test_a_body_shorter_than_it_says_is_cut_for_the_client_too(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(raw(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"a":', close=True))
    running = await serve(engine)
    with pytest.raises(httpx.RemoteProtocolError):
        await running.chat()
    await running.quiet()
    assert running.books.steps[-1]["outcome"] == "failed"


async def test_a_reply_without_a_length_ends_with_its_connection(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it", close=True))
    running = await serve(engine)
    assert (await running.chat()).content == b"all of it"


async def test_a_client_that_leaves_closes_the_step_upstream_at_once(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(streams(*[sse(delta("a"), done=False)] * 1000, pause_s=0.01))
    running = await serve(engine)
    async with running.client.stream(
        "POST", "/v1/chat/completions", json={"model": "m", "stream": True, "messages": []}
    ) as reply:
        async for _ in reply.aiter_raw():
            break
    await running.quiet()
    await until(lambda: engine.left)
    assert running.books.told(ev.ClientGone)
    assert running.books.steps[-1]["outcome"] == "gone"
    assert not running.gateway.engines["e1"].running


async def test_a_client_that_leaves_while_its_step_waits_frees_its_place(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(raw(hang=True))
    running = await serve(engine)
    asking = asyncio.create_task(running.chat())
    await until(lambda: engine.asked)
    asking.cancel()
    await running.quiet()
    assert running.books.told(ev.ClientGone)


async def test_each_deadline_ends_the_wait_with_a_clear_error(engine: ScriptedEngine, serve: Serve) -> None:
    limits = LimitSettings(first_byte_timeout_s=0.1, idle_stream_timeout_s=0.1)
    running = await serve(engine, limits=limits)
    engine.script.append(raw(hang=True))
    late = await running.chat()
    assert late.status_code == 504
    assert "first byte" in late.json()["error"]["message"]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    event = sse(delta("a"), done=False)
    engine.script.append(raw(head, b"%x\r\n%b\r\n" % (len(event), event), hang=True))
    stalled = await running.chat(stream=True)
    assert b"between two bytes" in stalled.content
    await running.quiet()


async def test_the_overall_deadline_ends_a_stream_that_never_would(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, limits=LimitSettings(overall_timeout_s=0.2))
    engine.script.append(streams(*[sse(delta("a"), done=False)] * 500, pause_s=0.01))
    reply = await running.chat(stream=True)
    assert b"whole reply" in reply.content


async def test_a_step_that_an_adapter_changed_is_serialised_anew_for_each_attempt(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(raw(close=True))
    running = await serve(engine, extra={"adds": {"priority": 3}})
    await running.chat()
    assert [asked.json["priority"] for asked in engine.asked] == [3, 3]


async def test_a_busy_engine_is_tried_once_elsewhere(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = answers(503, {"error": {"message": "queue full"}})
    running = await serve(engine, other, policy="fifo")
    replies = [await running.chat() for _ in range(4)]
    assert {reply.status_code for reply in replies} == {200}


async def test_a_gateway_without_an_engine_says_so_and_when_to_come_back(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    await engine.stop()
    await until(lambda: not running.gateway.engines["e1"].up)
    reply = await running.chat()
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    await engine.start()
    await until(lambda: running.gateway.engines["e1"].up)
    assert (await running.chat()).status_code == 200


async def test_a_draining_gateway_refuses_what_is_new_and_finishes_what_runs(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.script.append(streams(sse(delta("a"), done=False), sse(delta("b", "stop")), pause_s=0.1))
    under_way = asyncio.create_task(running.chat(stream=True))
    await until(lambda: engine.asked)
    assert (await running.client.post("/drain")).status_code == 202
    refused = await running.chat()
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert (await running.client.get("/readyz")).status_code == 503
    assert (await under_way).content == sse(delta("a"), delta("b", "stop"))


async def test_a_step_whose_failure_costs_the_engine_its_place_is_still_answered(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = raw(close=True)
    running = await serve(engine, other, policy="fifo")
    running.gateway.engines["e1"].breaker.steps_failed = STEPS_FAILED_MAX - 1
    reply = await running.chat()
    assert (reply.status_code, reply.headers["x-agentserve-engine"]) == (200, "e2")
    assert running.books.told(ev.EngineLost)
    await running.quiet()
    assert [row["outcome"] for row in running.books.steps] == ["finished"]


async def test_a_step_that_finds_no_other_engine_in_time_leaves_the_queue(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    running.gateway.relay.elsewhere_wait_s = 0.2
    engine.script.append(raw(hang=True))
    asking = asyncio.create_task(running.chat())
    await until(lambda: engine.asked)
    await engine.stop()
    reply = await asking
    assert reply.status_code in (502, 503)
    await running.quiet()
    assert not running.gateway.driver.scheduler.board.waiting
