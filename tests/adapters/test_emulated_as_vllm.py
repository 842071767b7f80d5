"""The vLLM adapter against the emulated engine, which answers as a vLLM server does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agentserve_adapters.emulated import EmulatedAdapter

from agentserve.ports import EngineOptions, Hints, Outcome, Outgoing, ProgramPrefix


@pytest.fixture
async def engine() -> AsyncIterator[Any]:
    adapter = EmulatedAdapter(
        EngineOptions(id="e1", kind="emulated", kv_tokens=20_000, extra={"time_scale": 1000.0})
    )
    await adapter.start()
    yield adapter
    await adapter.stop()


def chat(model: str, words: int) -> dict[str, Any]:
    text = " ".join(f"word{i}" for i in range(words))
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}


async def step(engine: Any, program: str, body: dict[str, Any]) -> dict[str, Any]:
    outgoing = Outgoing(protocol="chat", path="/v1/chat/completions", body=body)
    engine.prepare(outgoing, Hints(program=program, tenant="t", step="s"))
    answer = await engine.wire.post(outgoing.path, body, headers=dict(outgoing.headers))
    assert answer.ok, answer.text
    return dict(answer.json())


async def test_a_probe_of_the_emulated_engine_finds_what_was_set(engine: Any) -> None:
    caps = await engine.probe()
    assert caps.models
    assert caps.kv_tokens is not None
    assert abs(caps.kv_tokens - 20_000) <= 32
    assert caps.reports_cached_tokens
    assert {"chat", "completions", "messages"} <= caps.protocols


async def test_its_tokens_are_counted_as_it_bills_them(engine: Any) -> None:
    caps = await engine.probe()
    body = chat(caps.models[0], 100)
    count = await engine.count_tokens("chat", body)
    assert (await step(engine, "p1", body))["usage"]["prompt_tokens"] == count


async def test_a_warm_brings_the_prompt_into_its_cache(engine: Any) -> None:
    caps = await engine.probe()
    body = chat(caps.models[0], 400)
    receipt = await engine.warm("p1", ProgramPrefix(protocol="chat", body=dict(body)))
    assert receipt.outcome is Outcome.ACCEPTED
    usage = (await step(engine, "p1", body))["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0.9 * usage["prompt_tokens"]


async def test_its_gauges_are_read(engine: Any) -> None:
    caps = await engine.probe()
    await step(engine, "p1", chat(caps.models[0], 50))
    load = await engine.load()
    assert (load.running, load.waiting, load.preemptions) == (0, 0, 0)
    assert load.prefix_queries_tokens
    assert (await engine.load()).boot == load.boot


async def test_aborting_what_is_not_there_is_no_error(engine: Any) -> None:
    await engine.probe()
    assert (await engine.abort("nothing")).detail


async def test_listening_to_an_engine_without_events_waits_quietly(engine: Any) -> None:
    await engine.probe()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            async for _ in engine.kv_holdings():
                pytest.fail("there are no events")
