"""The ledger against the truth: what the gateway expects to be cached, and what the engine then says it found.

The engine is a process of its own with less KV than its programs need, and publishes events over ZeroMQ.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.scenarios.ledger import OFF_SHARE_MAX, Client, compare
from tests.scenarios.stage import AGENTSERVE, Process, ask_json, emulated, free_port, gateway, started

KV_TOKENS = 8_000
BLOCK_TOKENS = 16
REQUESTS = 300
SHARED_TOKENS_MOST = 400  # what the traffic may have brought back of everybody's beginning
NOTICED_S = 60.0


def two_ports() -> int:
    """A free port before another."""
    while True:
        first = free_port()
        try:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", first + 1))
        except OSError:
            continue
        return first


async def serves_with(port: int, kv_tokens: int) -> bool:
    """Does the gateway know its engine as up, with this much KV?"""
    _, listed = await ask_json(port, "/admin/v1/engines")
    (engine,) = listed["data"]
    return bool(engine["state"] == "up" and abs((engine["kv_tokens"] or 0) - kv_tokens) <= 2 * BLOCK_TOKENS)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    flags = ("--time-scale", "500", "--kv-tokens", str(KV_TOKENS), "--block-tokens", str(BLOCK_TOKENS))
    async with (
        emulated(tmp_path, *flags, "--kv-events-port", str(two_ports())) as engine,
        gateway([f"http://127.0.0.1:{engine.port}"], tmp_path) as process,
    ):
        yield process.port


async def test_what_the_ledger_expects_is_what_the_engine_finds(port: int) -> None:
    client = Client(port, seed=5)
    try:
        tally = await compare(client, REQUESTS)
    finally:
        await client.close()
    assert tally.found > 0
    assert tally.off_share < OFF_SHARE_MAX, f"{tally}"


async def test_an_engine_that_is_killed_and_started_with_less_kv_is_known_for_another_run(
    tmp_path: Path,
) -> None:
    engine_port, events_port = free_port(), two_ports()

    def engine(kv_tokens: int) -> contextlib.AbstractAsyncContextManager[Process]:
        command = [AGENTSERVE, "engine", "--port", str(engine_port), "--time-scale", "500"]
        command += ["--kv-tokens", str(kv_tokens), "--kv-events-port", str(events_port)]
        return started(command, engine_port, tmp_path / "engine.log")

    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(engine(KV_TOKENS))
        process = await stack.enter_async_context(gateway([f"http://127.0.0.1:{engine_port}"], tmp_path))
        client = Client(process.port, seed=9)
        stack.push_async_callback(client.close)
        await client.ask("old", 300)
        expected, found = await client.ask("old", 320)
        assert expected == found > 0

        traffic = asyncio.create_task(client.press_on())
        first.popen.kill()
        await first.popen.wait()
        await stack.enter_async_context(engine(KV_TOKENS // 2))
        async with asyncio.timeout(NOTICED_S):
            while not await serves_with(process.port, KV_TOKENS // 2):
                await asyncio.sleep(0.1)
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)

        expected, found = await client.ask("old", 340)
        assert expected <= SHARED_TOKENS_MOST
        assert found <= SHARED_TOKENS_MOST
        await client.ask("old", 360)
        expected, found = await client.ask("old", 380)
        assert expected == found > SHARED_TOKENS_MOST
