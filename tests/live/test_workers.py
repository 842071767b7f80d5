"""Several processes on one port: a client cannot tell, one scheduler sees all, and who dies takes only its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentserve.core import events as ev
from agentserve.core.ids import EngineId
from agentserve.live.server import Patience
from agentserve.live.upstream.lean import LeanUpstream
from agentserve.live.workers import frames as fr
from agentserve.live.workers import server as workers_server
from agentserve.live.workers.link import Link
from agentserve.live.workers.server import FrontedServer, listeners
from tests.live.conftest import (
    USAGE_CHUNK,
    Behaviour,
    Running,
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
from tests.live.test_relay import BROKEN, GOLDEN

OURS = (
    "x-agentserve-program",
    "x-agentserve-step",
    "x-agentserve-overhead-ms",
    "x-agentserve-queue-ms",
    "date",
)


@pytest.fixture
def workers() -> int:
    return 2


async def alone(engine: ScriptedEngine, serve: Serve) -> Running:
    """A gateway that is one process, in front of the same engine."""
    return await serve(engine, workers=1)


TRANSCRIPTS: dict[str, tuple[Behaviour, dict[str, Any]]] = {
    **{
        f"stream: {name}": (streams(*pieces, pause_s=0.002), {"stream": True})
        for name, pieces in GOLDEN.items()
    },
    **{f"engine {name}": (behaviour, {"stream": True}) for name, behaviour in BROKEN.items()},
    "a whole reply": (answers(200, chat_reply("hello")), {}),
    "usage that nobody asked for": (streams(sse(delta("a", "stop"), USAGE_CHUNK)), {"stream": True}),
    "usage that was asked for": (
        streams(sse(delta("a", "stop"), USAGE_CHUNK)),
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    "a refusal in a stream's place": (
        answers(400, {"error": {"message": "no", "type": "x", "code": 400}}, "x-ratelimit-remaining: 7\r\n"),
        {"stream": True},
    ),
    "a busy engine": (answers(503, {"error": {"message": "busy"}}), {"stream": True}),
    "a redirect": (answers(302, b"", "location: http://127.0.0.1:1/\r\n"), {"stream": True}),
    "a page for people": (
        raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi"),
        {"stream": True},
    ),
    "a stream that breaks between events": (
        streams(sse(delta("a"), done=False), end=False),
        {"stream": True},
    ),
    "a wrong field": (answers(200, chat_reply("hello")), {"messages": "none"}),
}


async def test_a_client_cannot_tell_whether_a_worker_served_it(engine: ScriptedEngine, serve: Serve) -> None:
    both = [await alone(engine, serve), await serve(engine)]
    for name, (behaviour, fields) in TRANSCRIPTS.items():
        seen = []
        for running in both:
            engine.script.clear()
            engine.otherwise = behaviour
            reply = await running.chat(**fields)
            await running.quiet()
            headers = {k: v for k, v in reply.headers.items() if k not in OURS}
            last = running.books.steps[-1] if running.books.steps else {}
            kept = {
                key: last.get(key)
                for key in ("status", "outcome", "prompt_tokens", "output_tokens", "streamed")
            }
            seen.append((reply.status_code, headers, reply.content, kept))
        assert seen[0] == seen[1], name


async def test_a_stream_is_fetched_by_the_worker_and_not_by_the_scheduler(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = streams(sse(delta("a"), delta("b", "stop"), USAGE_CHUNK))
    running = await serve(engine)
    assert (await running.chat(stream=True)).content == sse(delta("a"), delta("b", "stop"))
    await running.quiet()
    (one,) = running.gateway.engines
    assert isinstance(one.upstream, LeanUpstream)
    assert one.upstream.connections == 0
    finished = running.books.told(ev.StepFinished)[-1]
    assert (finished.prompt_tokens, finished.output_tokens) == (20, 5)


async def test_one_scheduler_knows_a_program_whichever_worker_its_steps_come_by(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    engine.otherwise = streams(sse(delta("ok", "stop")))
    messages: list[dict[str, str]] = [{"role": "user", "content": "mend the parser, and tell me what it was"}]
    programs = set()
    for turn in range(12):  # each on a connection of its own: the kernel spreads them
        async with httpx.AsyncClient(base_url=running.url, timeout=30.0) as client:
            body = {"model": "m", "messages": messages, "stream": True}
            reply = await client.post("/v1/chat/completions", json=body)
        programs.add(reply.headers["x-agentserve-program"])
        messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": f"go on, {turn}"}]
    assert len(programs) == 1


async def test_a_client_that_leaves_stops_the_engine_at_once(engine: ScriptedEngine, serve: Serve) -> None:
    engine.otherwise = raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + sse(delta("a"), done=False), hang=True
    )
    running = await serve(engine)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with running.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        await anext(reply.aiter_bytes())
    await until(lambda: engine.left)
    await running.quiet()
    assert running.books.steps[-1]["outcome"] == "gone"


async def test_a_step_whose_engine_goes_away_before_its_first_byte_is_carried_elsewhere(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = raw(hang=True)
    other.otherwise = streams(sse(delta("fine", "stop")))
    running = await serve(engine, other, policy="fifo")  # ties go to the first engine
    asking = asyncio.create_task(running.chat(stream=True))
    await until(lambda: engine.asked)
    await running.gateway.engines.remove("e1")
    reply = await asking
    assert (reply.status_code, reply.content) == (200, sse(delta("fine", "stop")))
    await until(lambda: engine.left)
    await running.quiet()


async def test_what_the_scheduler_streams_itself_waits_for_a_slow_client(
    engine: ScriptedEngine, serve: Serve
) -> None:
    """A translated stream is not the worker's to fetch; it comes piece by piece, each when the last was taken."""
    many = sse(*[delta("word " * 2000) for _ in range(400)])  # far more than the sockets between hold
    engine.otherwise = streams(*[many[at : at + 65536] for at in range(0, len(many), 65536)])
    running = await serve(engine, extra={"protocols": ["chat"]})
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with running.client.stream("POST", "/v1/messages", json=body) as reply:
        pieces = reply.aiter_bytes()
        got = await anext(pieces)
        await until(lambda: engine.open)
        assert running.gateway.relay.open  # it waits
        async for piece in pieces:
            got += piece
    assert got.count(b"word ") == 400 * 2000
    assert got.rstrip().endswith(b'{"type":"message_stop"}')
    await running.quiet()


async def test_a_worker_that_dies_takes_its_clients_and_no_others_and_has_a_successor(
    engine: ScriptedEngine, serve: Serve
) -> None:
    begin = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + sse(delta("a"), done=False)
    engine.otherwise = raw(begin, hang=True)
    running = await serve(engine)
    server = running.server
    assert isinstance(server, FrontedServer)
    await until(lambda: len(server.worker_pids) == 2)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with running.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        pieces = reply.aiter_bytes()
        await anext(pieces)
        for pid in server.worker_pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            await anext(pieces)
    await running.quiet()
    assert running.books.steps[-1]["outcome"] == "gone"
    await until(lambda: engine.open == 0)
    engine.otherwise = answers(200, chat_reply("again"))
    async with httpx.AsyncClient(base_url=running.url, timeout=60.0) as client:  # it waits for the successor
        body.pop("stream")
        again = await client.post("/v1/chat/completions", json=body)
    assert again.json()["choices"][0]["message"]["content"] == "again"
    await until(lambda: server.restarts == 2)


async def test_a_worker_that_dies_leaves_no_step_of_its_clients_behind(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = raw(b"", hang=True)
    running = await serve(engine)
    server, driver = running.server, running.gateway.driver
    assert isinstance(server, FrontedServer)
    await until(lambda: len(server.worker_pids) == 2)
    driver.tell(ev.EngineReported(engine=EngineId("e1"), seqs_max=2))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    running.client.timeout = httpx.Timeout(60.0)  # the workers may still be starting
    asking = [
        asyncio.create_task(running.client.post(f"/p/p{n}/v1/chat/completions", json=body)) for n in range(5)
    ]
    # two have no byte of their reply yet, three wait for a seat
    await until(lambda: len(engine.asked) == 2 and len(driver.scheduler.board.waiting) == 3, timeout_s=60.0)
    for pid in server.worker_pids:
        os.kill(pid, signal.SIGKILL)
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(end, httpx.TransportError) for end in ends), ends
    await running.quiet()
    await until(lambda: engine.open == 0)


async def test_a_worker_that_cannot_be_started_is_tried_again(
    engine: ScriptedEngine, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = asyncio.create_subprocess_exec, [OSError(24, "Too many open files")] * 3

    async def starved(*command: Any, **how: Any) -> Any:
        if failures:
            raise failures.pop()
        return await start(*command, **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starved)
    monkeypatch.setattr(workers_server, "RESTART_S", 0.01)
    running = await serve(engine)
    server = running.server
    assert isinstance(server, FrontedServer)
    await until(lambda: server.restarts == 3 and len(server.worker_pids) == 2, timeout_s=60.0)
    engine.otherwise = answers(200, chat_reply("here"))
    running.client.timeout = httpx.Timeout(60.0)  # they may still be starting
    assert (await running.chat()).status_code == 200


async def test_a_worker_that_hangs_is_ended_and_has_a_successor(
    engine: ScriptedEngine, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_server, "PING_S", 0.3)
    monkeypatch.setattr(workers_server, "SILENT_S", 12.0)  # no start takes as long
    running = await serve(engine, workers=2)
    server = running.server
    assert isinstance(server, FrontedServer)
    await until(lambda: len(server.worker_pids) == 2)
    assert (await running.chat()).status_code == 200
    hanging = server.worker_pids[0]
    os.kill(hanging, signal.SIGSTOP)
    await until(lambda: hanging not in server.worker_pids and len(server.worker_pids) == 2, timeout_s=120.0)
    assert server.restarts


async def test_health_admin_and_errors_come_through_workers_too(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    assert (await running.client.get("/healthz")).json()["status"] == "ok"
    assert [e["id"] for e in (await running.client.get("/admin/v1/engines")).json()["data"]] == ["e1"]
    assert (await running.client.get("/nothing")).status_code == 404
    assert (await running.client.head("/healthz")).content == b""


async def test_what_a_worker_does_not_take_is_counted_and_logged_as_the_scheduler_logs_by_now(
    engine: ScriptedEngine,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workers_server, "PING_S", 0.1)
    running = await serve(engine)
    assert (await running.chat()).status_code == 200
    caplog.set_level(logging.DEBUG)
    said = ""
    async with asyncio.timeout(30.0):
        while "was not taken: 400" not in said:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(b"what is this\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()
            said += capfd.readouterr().err
    await until(lambda: running.books.counts.get("refusals", 0) > 0)


async def test_a_client_too_slow_with_its_request_is_the_workers_business(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, patience=Patience(request_s=0.2, idle_s=5.0, stall_s=5.0))
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), 30.0)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_port_that_somebody_has_is_not_shared_with_them() -> None:
    first = listeners("127.0.0.1", 0, 2)
    try:
        with pytest.raises(OSError, match="in use"):
            listeners("127.0.0.1", first[0][0].getsockname()[1], 2)
    finally:
        for sockets in first:
            for sock in sockets:
                sock.close()


FRAMES = st.one_of(
    st.builds(fr.Left, request=st.integers(0, 2**40)),
    st.builds(
        fr.Opened,
        request=st.integers(0, 2**40),
        method=st.sampled_from(["GET", "POST"]),
        path=st.text(),
        raw_path=st.binary(),
        query=st.binary(),
        headers=st.lists(st.tuples(st.binary(), st.binary()), max_size=3),
        body=st.binary(max_size=2000),
        client=st.none() | st.tuples(st.text(), st.integers(0, 65535)),
    ),
    st.builds(
        fr.Broke, request=st.just(1), turn=st.just(2), kind=st.sampled_from(list(fr.KINDS)), message=st.text()
    ),
)


@given(st.lists(FRAMES, max_size=5), st.integers(1, 700))
def test_frames_are_read_however_they_are_cut(sent: list[fr.Frame], size: int) -> None:
    stream = b"".join(map(fr.framed, sent))
    unframer = fr.Unframer(fr.FromWorker)
    got = [frame for at in range(0, len(stream), size) for frame in unframer.feed(stream[at : at + size])]
    assert got == sent


@given(st.lists(FRAMES, max_size=3), st.binary(max_size=300), st.integers(1, 100))
def test_what_is_no_frame_is_refused_and_what_came_before_it_is_read(
    sent: list[fr.Frame], garbage: bytes, size: int
) -> None:
    stream = b"".join(map(fr.framed, sent)) + garbage
    unframer = fr.Unframer(fr.FromWorker)
    got: list[fr.Frame] = []
    try:
        for at in range(0, len(stream), size):
            got += unframer.feed(stream[at : at + size])
    except ValueError:
        assert garbage
        return
    assert got[: len(sent)] == sent


def test_a_frame_of_gigabytes_is_not_waited_for() -> None:
    unframer = fr.Unframer(fr.FromWorker)
    with pytest.raises(ValueError, match="a frame of 4294967295 bytes"):
        unframer.feed(b"\xff" * fr.LENGTH_BYTES)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x00"])
async def test_a_link_on_which_something_else_than_frames_is_said_ends(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    heard: list[fr.Frame] = []
    lost = asyncio.Event()
    link = Link(fr.FromWorker, heard=heard.append, lost=lost.set)
    ours.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: link, ours)
    with theirs:
        theirs.sendall(fr.framed(fr.Left(request=7)))
        await until(lambda: heard)
        theirs.sendall(garbage)
        async with asyncio.timeout(30.0):
            await lost.wait()
    assert heard == [fr.Left(request=7)]
    assert not link.open


def test_a_broken_carriage_is_raised_as_what_the_worker_met() -> None:
    for kind in fr.KINDS.values():
        error = fr.Broke(request=1, turn=1, kind=kind.__name__, message="so", remedy="do").error()
        assert type(error) is kind
        assert str(error) == "so; do"
    assert json.dumps(str(fr.Broke(request=1, turn=1, kind="Odd", message="so").error())) == '"so"'
