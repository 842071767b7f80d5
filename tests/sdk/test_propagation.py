"""HTTP clients carry the program to the gateway, and to nobody else."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import agentserve_sdk as agentserve
import anthropic
import httpx
import httpx2
import openai
import pytest
import requests
from agentserve_sdk import testing

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Another server: notes what it is sent, and sends `/away` on to where it is told."""

    seen: list[dict[str, str]]
    target = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        type(self).seen.append({":path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
        self.send_response(307 if self.path == "/away" else 200)
        self.send_header("location", type(self).target)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[dict[str, str]]]]:
    seen: list[dict[str, str]] = []
    kind = type("Other", (Elsewhere,), {"seen": seen})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()


def ids(gateway: testing.Gateway) -> list[str | None]:
    return [call.program_id for call in gateway.calls]


@pytest.mark.parametrize("client", [httpx, httpx2, requests])
def test_sync_clients_carry_program_and_step(gateway: testing.Gateway, client: Any) -> None:
    url = f"{gateway.base_url}/chat/completions"
    with agentserve.workflow("w") as program, agentserve.step("draft"):
        assert client.post(url, json=BODY).status_code == 200
    client.post(url, json=BODY)
    assert ids(gateway) == [program.id, None]
    assert gateway.calls[0].step == "draft"


def test_the_standard_library_carries_it(gateway: testing.Gateway) -> None:
    asked = urllib.request.Request(f"{gateway.base_url}/chat/completions", json.dumps(BODY).encode())
    with agentserve.workflow("w") as program:
        urllib.request.urlopen(asked, timeout=5).close()
    urllib.request.urlopen(asked, timeout=5).close()
    assert ids(gateway) == [program.id, None]


@pytest.mark.parametrize("client", [httpx, httpx2])
async def test_async_clients_carry_each_run_its_own(gateway: testing.Gateway, client: Any) -> None:
    async with client.AsyncClient(base_url=gateway.base_url) as shared:

        async def run(i: int) -> None:
            async with agentserve.workflow("w", id=f"run-{i}"):
                for _ in range(2):
                    await shared.post("/chat/completions", json={**BODY, "user": f"run-{i}"})

        await asyncio.gather(*(run(i) for i in range(10)))
    assert len(gateway.calls) == 20
    assert all(call.program_id == call.body["user"] for call in gateway.calls)


def test_the_openai_and_anthropic_clients_carry_it_streaming_too(gateway: testing.Gateway) -> None:
    with (
        openai.OpenAI(base_url=gateway.base_url, api_key="k") as oai,
        anthropic.Anthropic(base_url=gateway.url, api_key="k") as claude,
        agentserve.workflow("w") as program,
    ):
        for stream in (False, True):
            chat: Any = oai.chat.completions.create(**BODY, stream=stream)
            if stream:
                assert "ok" in "".join(c.choices[0].delta.content or "" for c in chat if c.choices)
        assert oai.responses.create(model="m", input="hi").output_text == "ok"
        assert claude.messages.create(**BODY, max_tokens=9).content[0].text == "ok"
    assert ids(gateway) == [program.id] * 4


def test_the_base_url_alone_is_enough(gateway: testing.Gateway) -> None:
    agentserve.init(gateway.url, propagate=False, integrations=False)
    with (
        agentserve.workflow("w", id="my run") as program,
        openai.OpenAI(base_url=program.base_url, api_key="k") as client,
    ):
        client.chat.completions.create(**BODY)
    assert ids(gateway) == ["my run"]


def test_a_child_process_belongs_to_the_program_and_leaves_its_end_to_us(gateway: testing.Gateway) -> None:
    child = (
        "import agentserve_sdk as agentserve, os, urllib.request\n"
        "agentserve.init(integrations=False)\n"
        "asked = urllib.request.Request(os.environ['AGENTSERVE_URL'] + '/v1/chat/completions', b'{}')\n"
        "with agentserve.tool('look', call_id='c1'):\n"
        "    urllib.request.urlopen(asked, timeout=30).read()\n"
        "print(os.environ['TRACEPARENT'])\n"
    )
    with agentserve.workflow("parent") as program:
        env = {**os.environ, **program.env()}
        done = subprocess.run(
            [sys.executable, "-c", child], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", done.stdout.strip())
        told = gateway.only_program
        assert (told.id, len(told.calls), told.status) == (program.id, 1, None)
        assert [(t.call_id, t.ended) for t in told.tools] == [("c1", True)]
    agentserve.shutdown()
    assert program.env() == {}


def test_explicit_headers_win(gateway: testing.Gateway) -> None:
    with agentserve.workflow("w") as one:
        given = agentserve.headers(final=True)
    with agentserve.workflow("w"):
        httpx.post(f"{gateway.base_url}/chat/completions", json=BODY, headers=given)
    assert ids(gateway) == [one.id]
    assert gateway.calls[0].headers["x-agentserve-final"] == "true"


@pytest.mark.parametrize("client", [httpx, httpx2, requests])
def test_no_other_origin_sees_them(
    gateway: testing.Gateway, elsewhere: tuple[str, list[dict[str, str]]], client: Any
) -> None:
    url, seen = elsewhere
    with agentserve.workflow("w"):
        client.post(url, json=BODY)
        client.post(gateway.url.replace("127.0.0.1", "127.1") + "/v1/chat/completions", json=BODY)
    assert [name for one in seen for name in one if name.startswith("x-agentserve")] == []
    assert ids(gateway) == [None]


@pytest.mark.parametrize("client", [httpx, httpx2, requests])
def test_a_redirect_away_takes_them_off(elsewhere: tuple[str, list[dict[str, str]]], client: Any) -> None:
    url, seen = elsewhere
    with testing.Gateway(integrations=False) as other:
        Elsewhere.target = f"{other.base_url}/chat/completions"
        agentserve.init(url, integrations=False)
        follow = {} if client is requests else {"follow_redirects": True}
        with agentserve.workflow("w") as program:
            client.post(f"{url}/away", json=BODY, **follow)
    (asked,) = [one for one in seen if one[":path"] == "/away"]
    assert asked["x-agentserve-program-id"] == program.id
    assert not [name for name in other.calls[0].headers if name.startswith("x-agentserve")]


def test_a_pool_of_plain_threads_loses_it_and_ours_does_not(gateway: testing.Gateway) -> None:
    def ask(name: str) -> None:
        httpx.post(f"{gateway.base_url}/chat/completions", json={**BODY, "user": name})

    with agentserve.ThreadPoolExecutor(8) as pool:
        for i in range(10):
            with agentserve.workflow("w", id=f"run-{i}"):
                pool.submit(ask, f"run-{i}")
    assert len(gateway.calls) == 10
    assert all(call.program_id == call.body["user"] for call in gateway.calls)


def test_the_program_outlives_a_failing_header(
    gateway: testing.Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> dict[str, str]:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("agentserve_sdk._propagate.headers", breaks)
    for client in (httpx, requests):
        with agentserve.workflow("w"):
            assert client.post(f"{gateway.base_url}/chat/completions", json=BODY).status_code == 200
