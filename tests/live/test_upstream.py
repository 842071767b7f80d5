"""One contract for every way to an engine, and what is each transport's own."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import respx

from agentserve.errors import BadRequest, ConfigError, EngineBroke, EngineTimeout, EngineUnreachable
from agentserve.live.upstream import Deadlines, Upstream, UpstreamReply
from agentserve.live.upstream.hosted import HostedUpstream
from agentserve.live.upstream.inprocess import InProcessUpstream
from agentserve.live.upstream.lean import LeanUpstream
from tests.live.conftest import ScriptedEngine, answers, raw, streams, until

QUICK = Deadlines(connect_s=1.0, first_byte_s=0.15, idle_s=0.15, overall_s=5.0)
PATIENT = Deadlines(connect_s=10.0, first_byte_s=10.0, idle_s=10.0)
JSON = [(b"content-type", b"application/json")]


class Left:
    """An ASGI engine whose behaviour is told by the path."""

    def __init__(self) -> None:
        self.left = 0
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        path = scope["path"]
        if path == "/silent":
            await self._until_left(receive)
            return
        if path == "/raises":
            raise ValueError("no")
        headers = [(b"Content-Type", b"text/event-stream"), (b"x-path", scope["raw_path"])]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        for piece in (b"one ", b"two ", b"three"):
            try:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            except OSError:
                self.left += 1
                raise
            await asyncio.sleep(0)
        if path == "/stalls":
            await self._until_left(receive)
            return
        if path == "/ends":
            return
        await send({"type": "http.response.body", "body": b""})

    async def _until_left(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left += 1


def by_socket(asked: Any, app: Left) -> Any:
    """What a socket server does on the same paths."""
    pieces = (b"one ", b"two ", b"three")
    head = b"HTTP/1.1 201 X\r\nContent-Type: text/event-stream\r\nx-path: %b\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)
    head %= asked.path.encode()
    return {
        "/silent": raw(hang=True),
        "/raises": raw(b"what?\r\n\r\n", close=True),
        "/stalls": raw(head + body, hang=True),
        "/ends": raw(head + body, close=True),
    }.get(asked.path, raw(head, body[:11], body[11:], b"0\r\n\r\n"))


@pytest.fixture(params=["lean", "httpx", "in process"])
async def way(
    request: pytest.FixtureRequest, engine: ScriptedEngine
) -> AsyncIterator[tuple[Upstream, Left, Any]]:
    app = Left()

    async def serve(asked: Any, reader: Any, writer: Any) -> None:
        app.bodies.append(asked.body)
        await by_socket(asked, app)(asked, reader, writer)

    engine.otherwise = serve
    made: Upstream
    if request.param == "lean":
        made = LeanUpstream(engine.url)
    elif request.param == "httpx":
        made = HostedUpstream(engine.url)
    else:
        made = InProcessUpstream(app)
    left: Callable[[], int] = (
        (lambda: app.left) if request.param == "in process" else (lambda: len(engine.left))
    )
    yield made, app, left
    await made.stop()


async def whole(reply: UpstreamReply) -> bytes:
    parts = []
    while not reply.done:
        parts.append(await reply.read())
    reply.close()
    return b"".join(parts)


async def test_a_request_and_its_reply_pass_as_they_are(way: tuple[Upstream, Left, Any]) -> None:
    upstream, app, _ = way
    for body in (b"", b"{}", b"x" * 300_000):
        reply = await upstream.send("POST", "/v1/x?y=1", JSON, body, deadlines=PATIENT)
        assert reply.status == 201
        assert dict(reply.headers)[b"content-type"] == b"text/event-stream"
        assert await whole(reply) == b"one two three"
        assert app.bodies[-1] == body


async def test_a_reply_is_handed_out_while_it_comes(way: tuple[Upstream, Left, Any]) -> None:
    upstream, _, _ = way
    reply = await upstream.send("POST", "/stalls", JSON, b"{}", deadlines=PATIENT)
    heard = b""
    while heard != b"one two three":
        heard += await reply.read()
    assert not reply.done
    reply.close()


async def test_closing_a_reply_early_is_noticed_at_once(way: tuple[Upstream, Left, Any]) -> None:
    upstream, _, left = way
    reply = await upstream.send("POST", "/stalls", JSON, b"{}", deadlines=Deadlines())
    await reply.read()
    reply.close()
    await until(lambda: left() == 1, 1.0)


async def test_cancelling_a_request_without_an_answer_is_noticed_at_once(
    way: tuple[Upstream, Left, Any],
) -> None:
    upstream, app, left = way
    asking = asyncio.ensure_future(upstream.send("POST", "/silent", JSON, b"{}", deadlines=Deadlines()))
    await until(lambda: app.bodies)
    asking.cancel()
    await until(lambda: left() == 1, 1.0)


async def test_an_engine_that_says_nothing_is_a_timeout(way: tuple[Upstream, Left, Any]) -> None:
    upstream, _, _ = way
    with pytest.raises(EngineTimeout, match="first byte"):
        await upstream.send("POST", "/silent", JSON, b"{}", deadlines=QUICK)


async def test_an_engine_that_stops_in_mid_reply_is_a_timeout(way: tuple[Upstream, Left, Any]) -> None:
    upstream, _, _ = way
    reply = await upstream.send("POST", "/stalls", JSON, b"{}", deadlines=QUICK)
    with pytest.raises(EngineTimeout, match="between two bytes"):
        await whole(reply)
    reply.close()


async def test_an_engine_that_ends_in_mid_reply_is_unreachable(way: tuple[Upstream, Left, Any]) -> None:
    upstream, _, _ = way
    reply = await upstream.send("POST", "/ends", JSON, b"{}", deadlines=PATIENT)
    with pytest.raises(EngineUnreachable):
        await whole(reply)
    reply.close()


async def test_an_engine_that_answers_nonsense_is_broken(way: tuple[Upstream, Left, Any]) -> None:
    upstream, _, _ = way
    with pytest.raises(EngineBroke):
        await upstream.send("POST", "/raises", JSON, b"{}", deadlines=PATIENT)


# -- the lean client


@pytest.fixture
async def lean(engine: ScriptedEngine) -> AsyncIterator[LeanUpstream]:
    made = LeanUpstream(engine.url, connections_max=2)
    yield made
    await made.stop()


async def ask(upstream: Upstream, body: bytes = b"{}", deadlines: Deadlines = PATIENT) -> bytes:
    return await whole(await upstream.send("POST", "/x", JSON, body, deadlines=deadlines))


async def test_a_connection_is_used_again_after_a_whole_reply(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    for _ in range(5):
        await ask(lean)
    assert (lean.connections, engine.open) == (1, 1)


async def test_a_connection_is_not_used_again_when_the_engine_says_close(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.otherwise = answers(200, {}, "connection: close\r\n")
    await ask(lean)
    await until(lambda: lean.connections == 0)


async def test_a_connection_that_was_closed_while_idle_is_replaced_unnoticed(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    await ask(lean)
    engine.script.append(raw(close=True))  # as a server does whose keep-alive ended as we wrote
    assert await ask(lean)


async def test_a_request_that_an_engine_worked_on_before_it_broke_is_not_sent_again(
    engine: ScriptedEngine,
) -> None:
    lean = LeanUpstream(engine.url, stale_s=0.05)
    await ask(lean)

    async def dies_of_it(asked: Any, reader: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        raise ConnectionResetError

    engine.script.append(dies_of_it)
    with pytest.raises(EngineUnreachable, match="before it replied"):
        await ask(lean, b"poison")
    assert [asked.body for asked in engine.asked] == [b"{}", b"poison"]
    await lean.stop()


@pytest.mark.parametrize("begun", [b"HTTP/1.1 2", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_whose_reply_had_begun_is_not_sent_again(
    engine: ScriptedEngine, lean: LeanUpstream, begun: bytes
) -> None:
    await ask(lean)
    engine.script.append(raw(begun, close=True))
    with pytest.raises(EngineUnreachable):
        await ask(lean)
    assert len(engine.asked) == 2


async def test_a_request_is_sent_again_once_and_no_more(engine: ScriptedEngine, lean: LeanUpstream) -> None:
    await asyncio.gather(ask(lean), ask(lean))
    engine.otherwise = raw(close=True)
    with pytest.raises(EngineUnreachable):
        await ask(lean)
    assert len(engine.asked) == 4


async def test_no_connection_stays_open_for_requests_that_do_not_come(engine: ScriptedEngine) -> None:
    lean = LeanUpstream(engine.url, keepalive_s=0.05)
    await asyncio.gather(*[ask(lean) for _ in range(3)])
    assert len(engine.asked) == 3
    await until(lambda: engine.open == lean.connections == 0)
    assert await ask(lean)
    await lean.stop()


async def test_a_fresh_connection_that_breaks_is_not_tried_again(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.otherwise = raw(close=True)
    with pytest.raises(EngineUnreachable):
        await ask(lean)
    assert len(engine.asked) == 1


async def test_an_engine_that_is_not_there_is_unreachable(engine: ScriptedEngine, lean: LeanUpstream) -> None:
    await engine.stop()
    with pytest.raises(EngineUnreachable, match="no connection"):
        await ask(lean)


async def test_what_an_engine_says_unasked_ends_its_connection(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    surplus = (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"
    )
    engine.script.append(raw(surplus))
    assert await ask(lean) == b"{}"
    assert b"hello" in await ask(lean)
    assert b"hello" in await ask(lean)


async def test_interim_answers_are_passed_over(engine: ScriptedEngine, lean: LeanUpstream) -> None:
    engine.script.append(raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"))
    assert await ask(lean) == b"{}"


async def test_a_reply_without_a_length_ends_with_its_connection_unless_that_breaks(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    async def reset(asked: Any, reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()

    engine.script.append(raw(b"HTTP/1.1 200 OK\r\n\r\nhello", close=True))
    assert await ask(lean) == b"hello"
    await until(lambda: lean.connections == 0)
    engine.script.append(reset)
    with pytest.raises(EngineUnreachable, match="in its reply"):
        await ask(lean)


async def test_a_reply_that_can_have_no_body_needs_no_length(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.script.append(raw(b"HTTP/1.1 204 No Content\r\n\r\n"))
    assert await ask(lean) == b""
    assert b"hello" in await ask(lean)
    assert (lean.connections, engine.open) == (1, 1)


async def test_an_interim_answers_headers_are_not_the_replys(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.script.append(
        raw(b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    )
    reply = await lean.send("POST", "/x", JSON, b"{}", deadlines=PATIENT)
    assert reply.headers == [(b"content-length", b"2")]
    await whole(reply)


async def test_what_follows_a_whole_reply_is_not_read_and_its_connection_not_used_again(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.script.append(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}and more\r\n\r\n"))
    assert await ask(lean) == b"{}"
    await until(lambda: lean.connections == 0)


async def test_a_reply_that_is_not_read_to_its_end_gives_its_place_to_who_waits(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.script += [raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none ", hang=True)] * 2
    left = [await lean.send("POST", "/x", JSON, b"{}", deadlines=PATIENT) for _ in range(2)]
    waiting = asyncio.ensure_future(ask(lean))
    await asyncio.sleep(0)
    assert not waiting.done()
    left[0].close()
    assert b"hello" in await waiting
    left[1].close()


async def test_a_head_without_end_is_given_up(engine: ScriptedEngine, lean: LeanUpstream) -> None:
    engine.script.append(raw(b"HTTP/1.1 200 OK\r\n", *[b"x-a: " + b"y" * 8000 + b"\r\n"] * 20, hang=True))
    with pytest.raises(EngineBroke, match="head"):
        await ask(lean)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 two OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    ],
)
async def test_a_reply_whose_framing_lies_is_broken(
    reply: bytes, engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.script.append(raw(reply, close=True))
    with pytest.raises((EngineBroke, EngineUnreachable)):
        await ask(lean)


async def test_a_header_with_a_line_break_is_refused_and_never_written(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    with pytest.raises(BadRequest):
        await lean.send("POST", "/x", [(b"x-a", b"b\r\nx-evil: 1")], b"{}", deadlines=PATIENT)
    assert not engine.asked


async def test_more_requests_than_connections_wait_their_turn(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    engine.otherwise = streams(b"{}", pause_s=0.02)
    await asyncio.gather(*[ask(lean, deadlines=PATIENT) for _ in range(12)])
    assert len(engine.asked) == 12
    assert lean.connections <= 2


async def test_a_slow_reader_stops_the_engine_and_not_the_gateways_memory(
    engine: ScriptedEngine, lean: LeanUpstream
) -> None:
    written = 0

    async def pour(asked: Any, reader: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 64000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 64_000)
            await writer.drain()
            written += 64_000

    engine.otherwise = pour
    reply = await lean.send("POST", "/x", JSON, b"{}", deadlines=Deadlines())
    await asyncio.sleep(0.2)
    stuck_at = written
    assert stuck_at < 30_000_000
    assert len(await whole(reply)) == 64_000_000


# -- the httpx client


def hosted(handler: Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]) -> HostedUpstream:
    router = respx.MockRouter(base_url="https://engine.example", assert_all_called=False)
    router.route().mock(side_effect=handler)
    transport = httpx.MockTransport(router.async_handler)
    return HostedUpstream("https://engine.example/base", client=httpx.AsyncClient(transport=transport))


async def test_a_hosted_engine_gets_our_headers_and_path_and_no_others() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, headers={"X-Up": "1"}, content=pieces())

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        yield b"}"

    upstream = hosted(handler)
    reply = await upstream.send("POST", "/v1/x?y=1", [*JSON, (b"x-a", b"b")], b"{}", deadlines=PATIENT)
    assert (b"x-up", b"1") in reply.headers
    assert await whole(reply) == b"{}"
    (request,) = seen
    assert str(request.url) == "https://engine.example/base/v1/x?y=1"
    assert "user-agent" not in request.headers
    assert "accept-encoding" not in request.headers
    await upstream.stop()


@pytest.mark.parametrize(
    ("raised", "meant"),
    [
        (httpx.ConnectError("refused"), EngineUnreachable),
        (httpx.ConnectTimeout("slow"), EngineUnreachable),
        (httpx.ReadError("reset"), EngineUnreachable),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), EngineUnreachable),
        (httpx.RemoteProtocolError("illegal status line"), EngineBroke),
        (httpx.PoolTimeout("busy"), EngineTimeout),
    ],
)
async def test_httpxs_exceptions_end_at_the_seam(raised: Exception, meant: type[Exception]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    upstream = hosted(handler)
    with pytest.raises(meant):
        await upstream.send("POST", "/x", JSON, b"{}", deadlines=PATIENT)
    await upstream.stop()


@pytest.mark.parametrize(
    ("name", "value"), [("SSL_CERT_FILE", "/nowhere/ca.pem"), ("ALL_PROXY", "gopher://proxy:1")]
)
def test_certificates_and_proxies_that_cannot_be_used_are_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        HostedUpstream("https://engine.example")


async def test_an_engine_on_this_machine_is_reached_past_the_environments_proxy(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")  # where nobody listens
    upstream = HostedUpstream(engine.url)
    reply = await upstream.send("POST", "/x", JSON, b"{}", deadlines=PATIENT)
    assert reply.status == 200
    await whole(reply)
    await upstream.stop()
