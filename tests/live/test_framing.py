"""Crafted framing: what another hop could read differently is refused, and nothing hangs or fails."""

from __future__ import annotations

import asyncio
import re

import pytest

from agentserve.config import LimitSettings
from agentserve.live.arriving import Inflow
from tests.live.conftest import Running, ScriptedEngine, Serve, delta, sse, streams

BODY = b'{"model":"m","messages":[]}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
HIDDEN = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


async def talk(running: Running, *pieces: bytes, timeout_s: float = 3.0) -> bytes:
    """Say these bytes and read until the gateway closes or has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    heard = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
        quiet_s = timeout_s  # for the first answer; what follows it comes at once or not at all
        while data := await asyncio.wait_for(reader.read(65536), quiet_s):
            heard += data
            quiet_s = 0.25
    except TimeoutError:
        heard += b"" if heard else b"<silence>"
    except ConnectionError:
        heard += b"<broken>"
    finally:
        writer.close()
    return heard


SMUGGLED: dict[str, list[bytes]] = {
    "a length and a transfer encoding": [
        POST,
        LENGTH,
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HIDDEN,
    ],
    "a transfer encoding and a length": [
        POST,
        b"transfer-encoding: chunked\r\n",
        LENGTH,
        b"\r\n0\r\n\r\n",
        HIDDEN,
    ],
    "two lengths that differ": [POST, LENGTH, b"content-length: 3\r\n\r\n", BODY],
    "two lengths that agree": [POST, LENGTH, LENGTH, b"\r\n", BODY],
    "a list of lengths": [POST, b"content-length: 27, 27\r\n\r\n", BODY],
    "a negative length": [POST, b"content-length: -1\r\n\r\n", BODY],
    "a length with a sign": [POST, b"content-length: +27\r\n\r\n", BODY],
    "a hexadecimal length": [POST, b"content-length: 0x1b\r\n\r\n", BODY],
    "an endless length": [POST, b"content-length: 99999999999999999999999\r\n\r\n", BODY],
    "an obsolete fold": [POST, b"x-a: b\r\n c: d\r\n", LENGTH, b"\r\n", BODY],
    "a folded length": [POST, b"content-length:\r\n 27\r\n\r\n", BODY],
    "a space before the colon": [POST, b"content-length : 27\r\n\r\n", BODY],
    "an unknown transfer encoding": [POST, b"transfer-encoding: gzip\r\n\r\n0\r\n\r\n"],
    "chunked twice": [POST, b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"],
    "chunked in disguise": [POST, b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"],
    "chunked after a tab": [POST, b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n"],
    "two transfer encodings": [
        POST,
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    ],
    "a bare line feed": [b"POST /v1/chat/completions HTTP/1.1\nhost: x\n", LENGTH, b"\n", BODY],
    "a bare carriage return": [POST, b"x-a: b\rc: d\r\n", LENGTH, b"\r\n", BODY],
    "a NUL in a header": [POST, b"x-a: b\x00c\r\n", LENGTH, b"\r\n", BODY],
    "a control character in a name": [POST, b"x\x01a: b\r\n", LENGTH, b"\r\n", BODY],
    "a chunk size with a sign": [POST, b"transfer-encoding: chunked\r\n\r\n+1b\r\n", BODY, b"\r\n0\r\n\r\n"],
    "a chunk size that overflows": [POST, b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", BODY],
    "a chunk longer than it says": [POST, b"transfer-encoding: chunked\r\n\r\n5\r\n", BODY, b"\r\n0\r\n\r\n"],
    "two hosts": [POST, b"host: y\r\n", LENGTH, b"\r\n", BODY],
    "two authorizations": [POST, b"authorization: a\r\nauthorization: b\r\n", LENGTH, b"\r\n", BODY],
    "no version": [b"POST /v1/chat/completions\r\n\r\n"],
    "another version": [b"POST /v1/chat/completions HTTP/3.0\r\nhost: x\r\n\r\n"],
    "an upgrade": [b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"],
    "a tunnel": [b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n"],
    "HTTP/2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    "TLS": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
    "nothing but zeros": [b"\x00" * 4096],
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_ambiguous_framing_is_refused_and_what_it_hides_is_not_answered(
    name: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    heard = await talk(running, *SMUGGLED[name])
    assert not engine.asked
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", heard)) <= 1
    assert heard == b"<broken>" or heard.split(b" ")[1][:1] in (b"4", b"5")
    assert b"500" not in heard[:16]
    assert (await running.client.get("/healthz")).status_code == 200


async def test_the_same_bytes_in_any_pieces_are_the_same_request(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    whole = POST + LENGTH + b"\r\n" + BODY
    await talk(running, *[whole[i : i + 1] for i in range(len(whole))])
    chunked = (
        POST + b"transfer-encoding: chunked\r\n\r\n" + b"1b\r\n" + BODY + b"\r\n0\r\nx-trailer: 1\r\n\r\n"
    )
    await talk(running, chunked[:80], chunked[80:])
    assert [asked.body for asked in engine.asked] == [BODY, BODY]
    assert "x-trailer" not in engine.asked[1].headers


@pytest.mark.parametrize("piece_bytes", [5_000, 9_000, 65_536, 1_000_000])
async def test_a_long_body_is_the_same_in_any_pieces_and_ends_where_the_next_request_begins(
    piece_bytes: int, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    text = bytes(97 + i * i % 26 for i in range(300_000))
    body = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % text
    whole = (POST + b"content-length: %d\r\n\r\n" % len(body) + body) * 2 + HIDDEN
    pieces = [whole[i : i + piece_bytes] for i in range(0, len(whole), piece_bytes)]
    heard = await talk(running, *pieces, timeout_s=30.0)
    assert heard.count(b"HTTP/1.1 200") == 3
    assert [asked.body for asked in engine.asked] == [body, body]


def test_a_long_body_takes_no_more_memory_than_eight_times_what_has_come() -> None:
    sent = bytes(i * i % 251 for i in range(1_000_000))
    inflow, came, held = Inflow(len(sent), [sent[:5_000], sent[5_000:9_000]]), 9_000, 0
    held = inflow.size
    while not inflow.complete:
        room = inflow.room()
        assert came + len(room) == held == inflow.size <= 8 * came
        count = min(len(room), 70_000)
        room[:count] = sent[came : came + count]
        del room
        came += count
        held += inflow.add(count)
    assert inflow.whole() == sent


async def test_pipelined_requests_are_answered_in_order(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    heard = await talk(running, (POST + LENGTH + b"\r\n" + BODY) + HIDDEN + HIDDEN)
    assert heard.count(b"HTTP/1.1 200") == 3
    assert heard.index(b"chatcmpl") < heard.index(b'"scheduler"')


async def test_too_many_pipelined_requests_are_not_kept(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    heard = await talk(running, (POST + LENGTH + b"\r\n" + BODY) + HIDDEN * 500)
    assert 1 <= heard.count(b"HTTP/1.1 200") <= 20


async def test_headers_are_bounded_in_number_and_size(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, limits=LimitSettings(header_bytes_max=4096))
    many = b"".join(b"x-%d: y\r\n" % i for i in range(200))
    assert b" 431 " in await talk(running, POST + many + LENGTH + b"\r\n" + BODY)
    assert b" 431 " in await talk(running, POST + b"x-long: " + b"y" * 8000 + b"\r\n", b"\r\n")
    endless = [POST, b"x-endless: ", *[b"y" * 2000] * 8]
    assert b" 431 " in await talk(running, *endless)
    assert b" 431 " in await talk(running, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")


async def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, limits=LimitSettings(body_bytes_max=1000))
    heard = await talk(
        running, POST + b"transfer-encoding: chunked\r\n\r\n", *[b"190\r\n" + b"x" * 400 + b"\r\n"] * 4
    )
    assert b" 413 " in heard


async def test_what_is_not_taken_is_counted(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, limits=LimitSettings(header_bytes_max=4096, body_bytes_max=1000))
    assert b" 413 " in await talk(running, POST + b"content-length: 1001\r\n\r\n")
    assert running.books.counts.get("refusals") == 1
    assert b" 400 " in await talk(running, b"what is this\r\n\r\n")
    assert b" 431 " in await talk(running, POST + b"x-long: " + b"y" * 8000 + b"\r\n", b"\r\n")
    assert running.books.counts["refusals"] == 3


async def test_a_client_that_expects_a_continue_gets_one(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    heard = await talk(running, POST + LENGTH + b"expect: 100-continue\r\n\r\n", BODY)
    assert heard.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


async def test_an_old_client_gets_an_answer_and_its_connection_closed(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    heard = await talk(running, POST.replace(b"1.1", b"1.0") + LENGTH + b"\r\n" + BODY)
    assert b"connection: close" in heard


async def test_an_old_client_gets_a_stream_without_the_framing_that_it_cannot_read(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    events = sse(delta("a"), delta("b", "stop"))
    engine.otherwise = streams(events)
    body = BODY.replace(b"{", b'{"stream": true, ', 1)
    length = b"content-length: %d\r\n" % len(body)
    heard = await talk(running, POST.replace(b"1.1", b"1.0") + length + b"\r\n" + body)
    head, _, answer = heard.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert answer == events
    await running.quiet()


async def test_a_head_is_answered_without_a_body_and_the_next_request_as_itself(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for path in (b"/healthz", b"/nowhere", b"/v1/chat/completions"):
        writer.write(b"HEAD %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: " in head
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    heard = await reader.read()
    writer.close()
    assert heard.startswith(b"HTTP/1.1 200 OK\r\n")
    assert heard.endswith(b"}")


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v1/chat/completions", 405, "asked by POST"),
        ("POST", "/v1/chat/completions/", 404, "/v1/chat/completions is"),
        ("POST", "/chat/completions", 404, "/v1/chat/completions is"),
        ("POST", "/v1/v1/messages", 404, "/v1/messages is"),
        ("POST", f"/p/{'a' * 257}/v1/responses", 404, "256 printable"),
        ("POST", "/else", 404, "nothing is served at /else"),
    ],
)
async def test_a_wrong_path_is_told_from_the_right_one(
    method: str, path: str, status: int, said: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    reply = await running.client.request(method, path)
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]
    assert not engine.asked


async def test_half_a_request_and_a_closed_connection_leave_nothing_behind(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    for cut in (10, 60, len(POST) + 5):
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write((POST + LENGTH + b"\r\n" + BODY)[:cut])
        await writer.drain()
        writer.close()
    await running.quiet()
    assert not engine.asked
