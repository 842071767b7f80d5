"""Somebody who means harm: with little, they get nothing that is not theirs and take nothing from others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentserve.config import LimitSettings
from agentserve.live.auth import ADMIN, CALL, READ, Caller, ListedKeys, OpenKeys
from agentserve.live.server import Patience
from tests.live.conftest import (
    Running,
    ScriptedEngine,
    Serve,
    answers,
    delta,
    sse,
    until,
)
from tests.live.test_framing import BODY, LENGTH, POST, talk

KEYS = {
    "as-a": Caller(tenant="a"),
    "as-b": Caller(tenant="b"),
    "as-r": Caller(tenant="ops", scopes=frozenset({READ})),
    "as-x": Caller(tenant="ops", scopes=frozenset({ADMIN})),
}
A, B = {"authorization": "Bearer as-a"}, {"authorization": "Bearer as-b"}


# -- without keys: pages in a browser on this machine


PAGES: dict[str, dict[str, str]] = {
    "a page elsewhere": {"origin": "https://evil.example"},
    "a sandboxed page": {"origin": "null"},
    "another server of this machine": {"origin": "http://127.0.0.1:1"},
    "a host that was made to lead here": {"host": "evil.example:8400"},
    "and says so twice": {"host": "evil.example:8400", "origin": "http://evil.example:8400"},
}


@pytest.mark.parametrize("page", PAGES)
async def test_an_open_gateway_lets_no_web_page_rule_it(
    page: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, keys=OpenKeys(here_only=True))
    planted = json.dumps({"id": "planted", "url": "http://127.0.0.1:9"})
    headers = {**PAGES[page], "content-type": "text/plain"}  # what a page sends without asking first
    for method, path in (("POST", "/admin/v1/engines"), ("POST", "/admin/v1/engines/e1/drain"), ("POST", "/drain"),
                         ("GET", "/admin/v1/programs"), ("PUT", "/admin/v1/tenants/a")):  # fmt: skip
        refused = await running.client.request(method, path, content=planted, headers=headers)
        assert refused.status_code == 403, (path, refused.text)
    assert [e.id for e in running.gateway.engines] == ["e1"]
    if "host" in PAGES[page]:
        assert (await running.client.get("/v1/responses/x", headers=headers)).status_code == 403
        assert (await running.client.post("/v1/chat/completions", headers=headers)).status_code == 403
    assert not engine.asked


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8400", "localhost:1", "[::1]:8400", "gateway", "host.docker.internal"]
)
async def test_an_open_gateway_serves_its_console_and_every_program_of_its_machine(
    host: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, keys=OpenKeys(here_only=True))
    own = {"host": host, "origin": f"http://{host}"}
    assert (await running.client.post("/admin/v1/engines/e1/drain", headers=own)).status_code == 200
    assert (
        await running.client.post("/admin/v1/engines/e1/resume", headers={"host": host})
    ).status_code == 200
    app = {
        "host": host,
        "origin": "app://an-editor",
    }  # pages may call; what they get, their browser keeps from them
    body = {"model": "m", "messages": []}
    assert (await running.client.post("/v1/chat/completions", json=body, headers=app)).status_code == 200


# -- keys and tenants


async def test_a_key_opens_what_its_scope_says_on_every_route(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    api = (await running.client.get("/openapi.json")).json()
    public = {"/healthz", "/readyz", "/metrics"}
    seen = 0
    for path, operations in api["paths"].items():
        for method in set(operations) & {"get", "post", "put", "delete", "patch"}:
            url = path.replace("{key}", "a/x").replace("{", "x").replace("}", "")
            if path in public:
                continue
            admin = path.startswith("/admin/") or path == "/drain"
            looks = admin and method == "get"
            for key, scope in (("", None), ("as-no", None), ("as-a", CALL), ("as-r", READ)):
                may = (looks and scope == READ) or (not admin and scope == CALL)
                if may:
                    continue
                headers = {"authorization": f"Bearer {key}"} if key else {}
                refused = await running.client.request(method, url, json={}, headers=headers)
                assert refused.status_code == (403 if scope else 401), (method, url, key, refused.text)
                seen += 1
    assert seen > 100
    assert not engine.asked
    assert [e.id for e in running.gateway.engines] == ["e1"]


async def test_no_spelling_of_a_path_gets_around_a_keys_scope(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    auth = b"authorization: Bearer as-a\r\n\r\n"
    for path in (
        b"/p/..%2fadmin/v1/programs", b"/p/../admin/v1/programs", b"/p/x/v1/../../admin/v1/programs",
        b"/v1/../admin/v1/programs", b"//admin/v1/programs", b"/admin//v1/programs", b"/%61dmin/v1/programs",
        b"/admin/v1/programs/", b"/admin/v1%2fprograms", b"http://x/admin/v1/programs", b"/p/x/v1/admin/v1/programs",
        b"/ADMIN/v1/programs", b"/admin/v1/programs;x", b"/admin/v1/programs?key=as-x",
        b"/p/%00/v1/../admin/v1/programs",
        b"/p/a/admin/v1/programs", b"/v1/models/../../admin/v1/programs", b"/console/../admin/v1/programs",
        b"/console/..%2f..%2f..%2fadmin.py", b"/console/%2e%2e/%2e%2e/live/auth.py", b"*",
    ):  # fmt: skip
        heard = await talk(running, b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + auth)
        status = int(heard.split(b" ")[1])
        assert status in (301, 307, 400, 403, 404, 405), (path, heard[:200])
        assert b'"data"' not in heard
        assert b"import" not in heard


async def test_a_tenant_gets_nothing_of_anothers_by_its_id(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    engine.otherwise = answers(200, {"id": "resp_1", "object": "response", "status": "completed", "model": "m",
                                     "output": [], "usage": {"input_tokens": 1, "output_tokens": 1}})  # fmt: skip
    client = running.client
    conversation = (await client.post("/v1/conversations", json={"items": [{"role": "user", "content": "mine"}]},
                                      headers=A)).json()["id"]  # fmt: skip
    item = (await client.get(f"/v1/conversations/{conversation}/items", headers=A)).json()["data"][0]["id"]
    made = await client.post("/p/run/v1/responses", json={"model": "m", "input": "mine"}, headers=A)
    assert made.json()["id"] == "resp_1"
    await client.put("/v1/workflows/flow", json={"steps": ["plan", "write"]}, headers=A)
    asked = len(engine.asked)
    at = f"/v1/conversations/{conversation}"
    for method, path, body in (
        ("GET", "/v1/responses/resp_1", None), ("DELETE", "/v1/responses/resp_1", None),
        ("POST", "/v1/responses/resp_1/cancel", {}), ("GET", "/v1/responses/resp_1/input_items", None),
        ("GET", at, None), ("POST", at, {"metadata": {}}), ("DELETE", at, None), ("GET", f"{at}/items", None),
        ("POST", f"{at}/items", {"items": [{"role": "user", "content": "theirs"}]}),
        ("GET", f"{at}/items/{item}", None), ("DELETE", f"{at}/items/{item}", None),
        ("GET", "/v1/programs/run", None), ("GET", "/v1/workflows/flow", None),
        ("POST", "/v1/responses", {"model": "m", "input": "x", "previous_response_id": "resp_1"}),
        ("POST", "/v1/responses", {"model": "m", "input": "x", "conversation": conversation}),
        ("POST", "/v1/responses", {"model": "m", "input": "x", "conversation": {"id": conversation}}),
    ):  # fmt: skip
        refused = await client.request(method, path, json=body, headers=B)
        assert refused.status_code in (404, 405), (method, path, refused.text)
        assert "mine" not in refused.text
    await client.delete("/v1/programs/run", headers=B)
    assert (await client.get("/v1/programs/run", headers=A)).status_code == 200
    assert (await client.get(f"{at}/items", headers=A)).json()["data"][0]["id"] == item
    assert len(engine.asked) == asked


async def test_two_tenants_who_send_the_same_words_and_names_stay_two(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    said = {"model": "m", "messages": [{"role": "user", "content": "the very same"}]}
    for headers in (A, B, A, B):
        named = {**headers, "x-agentserve-program-id": "b/run"}
        for extra in ({}, named):
            await running.client.post("/v1/chat/completions", json=said, headers={**headers, **extra})
    await running.quiet()
    by_tenant: dict[str, set[str]] = {}
    for row in running.books.steps:
        by_tenant.setdefault(row["tenant"], set()).add(row["program"])
    assert not by_tenant["a"] & by_tenant["b"]


# -- requests that are slow, large or odd


async def test_who_never_ends_a_request_is_cut_off(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, patience=Patience(request_s=0.3, idle_s=0.3))

    async def drip(begun: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(begun)
        heard = asyncio.ensure_future(reader.read())
        while not heard.done():
            try:
                writer.write(b"x")
                await writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(0.02)
        async with asyncio.timeout(30.0):
            said = await asyncio.gather(heard, return_exceptions=True)
        writer.close()
        return said[0] if isinstance(said[0], bytes) else b""

    slow = await asyncio.gather(
        drip(b"PO"), drip(POST + b"x-a: "), drip(POST + b"content-length: 100000\r\n\r\n{"),
        drip(POST + b"transfer-encoding: chunked\r\n\r\nffff\r\n"),
    )  # fmt: skip
    assert all(b" 408 " in said or said == b"" for said in slow[1:])
    assert b" 408 " in b"".join(slow)
    assert not engine.asked
    assert (await running.chat()).status_code == 200


async def test_who_says_nothing_at_all_is_cut_off(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, patience=Patience(request_s=0.3, idle_s=0.3))
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    async with asyncio.timeout(30.0):
        assert await reader.read() == b""
    writer.close()


async def test_who_does_not_read_its_answer_stops_the_engine_and_is_cut_off(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, patience=Patience(request_s=0.5, stall_s=1.0))
    written = 0

    async def endless(asked: Any, reader: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        event = sse(delta("x" * 60_000), done=False)
        while True:
            writer.write(event)
            await writer.drain()
            written += len(event)

    engine.otherwise = endless
    _reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    assert isinstance(writer.transport, asyncio.ReadTransport)
    writer.transport.pause_reading()
    writer.write(POST + LENGTH + b"\r\n" + BODY)
    await until(lambda: engine.left)
    assert written < 64 * 1024 * 1024  # what the sockets on the way hold, and no more
    writer.transport.abort()
    await running.quiet()


async def test_unknown_senders_bodies_are_bounded_all_together(engine: ScriptedEngine, serve: Serve) -> None:
    limits = LimitSettings(body_bytes_max=200_000, bodies_bytes_max=500_000)
    running = await serve(engine, limits=limits, keys=ListedKeys.of(KEYS))
    writers, readers = [], []
    for _ in range(8):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(POST + b"content-length: 150000\r\n\r\n" + b"x" * 149_000)
        await writer.drain()
        writers.append(writer)
        readers.append(asyncio.ensure_future(reader.read(200)))
    async with asyncio.timeout(30.0):
        done, waiting = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 5:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
    assert all(b" 503 " in one.result() for one in done)
    for one in waiting:
        one.cancel()
    for writer in writers:
        writer.transport.abort()
    reply = await until_answered(running)
    assert reply == 200


async def until_answered(running: Running) -> int:
    """The status once those before have let go of their room."""
    async with asyncio.timeout(30.0):
        while True:
            body = {"model": "m", "messages": [{"role": "user", "content": "x" * 150_000}]}
            reply = await running.client.post("/v1/chat/completions", json=body, headers=A)
            if reply.status_code != 503:
                return reply.status_code
            await asyncio.sleep(0.02)


ODD: dict[str, list[bytes]] = {
    "a chunk extension without end": [POST, b"transfer-encoding: chunked\r\n\r\n", b"1b;" + b"x" * 200_000],
    "trailers without end": [POST, b"transfer-encoding: chunked\r\n\r\n1b\r\n", BODY, b"\r\n0\r\n",
                             *[b"x-t: " + b"y" * 4000 + b"\r\n"] * 60],
    "ten thousand headers": [POST, *[b"".join(b"x-%d: y\r\n" % i for i in range(10_000))], LENGTH, b"\r\n", BODY],
    "one byte of header each": [POST, b"".join(b"a:b\r\n" for _ in range(10_000)), LENGTH, b"\r\n", BODY],
    "two content types": [POST, b"content-type: application/json\r\ncontent-type: x/y\r\n", LENGTH, b"\r\n", BODY],
    "an endless line before the request": [b"\r\n" * 100_000],
    "a method of its own": [b"BREW /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n"],
    "a compressed body": [POST, b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00"],
    "not UTF-8": [POST, b"content-length: 13\r\n\r\n", b'{"model":"\xff"}'],
    "UTF-16": [POST, b"content-length: 54\r\n\r\n", '{"model":"m","messages":[]}'.encode("utf-16-le")],
    "half a surrogate": [POST, b"content-length: 39\r\n\r\n", b'{"model":"m\\ud800","messages":["hello"]}'[:39]],
    "nothing": [POST, b"content-length: 0\r\n\r\n"],
    "no body at all": [POST, b"\r\n"],
    "a number without end": [POST, b"content-length: 100008\r\n\r\n", b'{"n": 1' + b"0" * 100_000 + b"}"],
    "JSON and more": [POST, b"content-length: 29\r\n\r\n", BODY, b"{}"],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
async def test_what_is_odd_is_refused_in_a_word(name: str, engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    heard = await talk(running, *ODD[name])
    assert heard == b"<broken>" or heard.split(b" ")[1][:1] == b"4", heard[:300]
    assert not engine.asked
    assert (await running.chat()).status_code == 200
    await running.quiet()


NUMBERS = [
    "1e999",
    "-1",
    "0",
    "1" + "0" * 400,
    "18446744073709551616",
    "1e308",
    "0.1",
    "true",
    "null",
    '"7"',
    "[]",
]
FIELDS = [
    "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "seed", "best_of", "stream",
    "stream_options", "temperature", "tools", "messages", "input", "prompt", "model",
    "user", "metadata", "stop", "system", "previous_response_id", "conversation", "store",
    "background", "thinking", "dimensions",
]  # fmt: skip


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages", "embeddings"])
async def test_no_value_of_a_known_field_breaks_the_gateway(
    path: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    for field in FIELDS:
        for value in (*NUMBERS, '{"a":{"b":[null]}}', '[[1,{"role":5,"content":{"type":[]}}]]', '"\\u0000"'):
            said = {"model": '"m"', "messages": "[]", "input": '"x"', "prompt": '"x"', field: value}
            body = "{" + ",".join(f'"{k}":{v}' for k, v in said.items()) + "}"
            reply = await running.client.post(f"/v1/{path}", content=body)
            assert reply.status_code in (200, 400, 404), (body, reply.text)
    await running.quiet()
    assert running.books.counts.get("fallbacks", 0) == 0


async def test_no_number_that_is_told_of_a_program_breaks_the_gateway(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    calls: list[tuple[str, str, str]] = [("POST", "/v1/programs", '{"id":"p","deadline_ms":%s}')]
    calls += [
        ("POST", "/v1/programs/p/events", f'[{{"type":"{kind}","tool_call_id":"c","tool":"t","{field}":%s}}]')
        for kind, field in (("tool_start", "eta_ms"), ("tool_start", "timeout_ms"), ("tool_end", "duration_ms"),
                            ("next", "in_ms"), ("hint", "in_ms"), ("hint", "steps_left"))
    ]  # fmt: skip
    calls += [
        ("PUT", "/v1/workflows/w", '{"nodes":[{"id":"a","expect":{"output_tokens":%s}}],"edges":[]}'),
        ("PUT", "/v1/workflows/w", '{"nodes":[{"id":"a","duration_ms":%s}],"edges":[]}'),
        ("PUT", "/admin/v1/tenants/default", '{"weight":%s}'),
        ("PUT", "/admin/v1/tenants/default", '{"tokens_per_minute":%s}'),
        ("PUT", "/admin/v1/tenants/default", '{"program_steps_max":%s}'),
        ("POST", "/admin/v1/engines", '{"id":"x","url":"http://127.0.0.1:9","kv_tokens":%s}'),
    ]
    for method, path, template in calls:
        for value in (*NUMBERS, "1e12", "5e-324", "9007199254740993"):
            reply = await running.client.request(method, path, content=template % value)
            assert reply.status_code in (200, 201, 202, 400, 404, 409), (path, template % value, reply.text)
            if path.endswith("engines") and reply.status_code == 201:
                await running.client.delete("/admin/v1/engines/x")
            step = await running.client.post("/p/p/v1/chat/completions", json={"model": "m", "messages": []})
            assert step.status_code in (200, 429), step.text
    await running.quiet()
    assert running.gateway.driver.healthy


async def test_no_usage_that_an_engine_reports_breaks_the_gateway(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    for field in (
        "prompt_tokens",
        "completion_tokens",
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
    ):
        for value in NUMBERS:
            whole = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"%b":%b}}'
            engine.script.append(answers(200, whole % (field.encode(), value.encode())))
            assert (await running.chat()).status_code == 200
    await running.quiet()
    assert running.gateway.driver.healthy
    assert running.books.counts.get("fallbacks", 0) == 0


def asks(content: str, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


BASH: Any = {"type": "function_call", "name": "bash", "arguments": "{" * 100}
SLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "tags that are never closed": ("chat/completions", asks("<total_tokens>" * 40_000)),
    "thoughts without end": ("chat/completions", asks("</think><think>" * 40_000, "assistant")),
    "billing lines": ("messages", {"system": "x-anthropic-billing-header:\n" * 20_000, "messages": []}),
    "prompts of many lines, many times": ("embeddings", {"input": [["a\n" * 2_000] * 40] * 40}),
    "ids in names": ("chat/completions", {"user": "user_" + "_session_" * 60_000, "messages": []}),
    "calls without end": ("responses", {"input": [{**BASH, "call_id": f"c{i}"} for i in range(2_000)]}),
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_body_that_is_made_to_be_slow_is_not(name: str, engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    path, said = SLOW[name]
    reply = await running.client.post(f"/v1/{path}", json={"model": "m", **said}, timeout=60.0)
    assert reply.status_code == 200
    await running.quiet()


async def test_of_a_field_that_stands_twice_gateway_and_engine_read_the_same(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    body = b'{"model":"nobody-serves-this","messages":[],"stream":true,"stream":false,"model":"m"}'
    assert (await running.client.post("/v1/chat/completions", content=body)).status_code == 200
    assert engine.asked[-1].body == body
    assert engine.asked[-1].json["model"] == "m"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_absolute_target_leads_nowhere_else(
    version: bytes, engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    line = b"POST %b/v1/chat/completions HTTP/%b\r\nhost: %b\r\n"
    there = other.url.encode()
    heard = await talk(running, line % (there, version, there[7:]) + LENGTH + b"\r\n" + BODY)
    assert b" 200 " in heard[:20]
    assert (len(engine.asked), len(other.asked)) == (1, 0)
