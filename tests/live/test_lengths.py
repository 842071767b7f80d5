"""How long prompts are believed to be before an engine has counted them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx

from agentserve.core import events as ev
from agentserve.live.lengths import Lengths
from agentserve.live.wire import Call
from agentserve.live.wire.call import CallReader
from tests.live.conftest import ScriptedEngine, Serve, raw, until


def prompt(chars: int, model: str = "m") -> Call:
    body = {"model": model, "messages": [{"role": "user", "content": "x" * chars}]}
    call = CallReader().read("/v1/chat/completions", {}, body)
    assert call is not None
    return call


def test_the_first_prompt_that_was_counted_replaces_the_guess() -> None:
    lengths = Lengths()
    guessed = lengths.estimate(prompt(4_000))
    lengths.learn(prompt(4_000), 2_000)
    assert guessed < 1_200
    assert abs(lengths.estimate(prompt(4_000)) - 2_000) < 10
    assert lengths.estimate(prompt(4_000, "another")) == guessed


def test_one_odd_prompt_among_many_moves_the_estimate_little() -> None:
    lengths = Lengths()
    for _ in range(50):
        lengths.learn(prompt(4_000), 1_000)
    lengths.learn(prompt(4_000), 4_000)
    assert 1_000 <= lengths.estimate(prompt(4_000)) < 1_100


def test_a_prompt_that_an_engine_counted_as_next_to_nothing_teaches_nothing() -> None:
    lengths = Lengths()
    before = lengths.estimate(prompt(4_000))
    lengths.learn(prompt(4_000), 3)
    assert lengths.estimate(prompt(4_000)) == before


async def test_an_engine_counts_a_models_first_prompt_and_no_later_one() -> None:
    asked: list[tuple[str, str]] = []

    async def count(model: str, protocol: str, body: dict[str, Any]) -> int:
        asked.append((model, protocol))
        return 2_000

    lengths = Lengths(count)
    for _ in range(3):
        lengths.first(prompt(4_000), "chat", dict)
    await asyncio.sleep(0)
    await lengths.close()
    assert asked == [("m", "chat")]
    lengths.first(prompt(4_000), "chat", dict)
    await lengths.close()
    assert asked == [("m", "chat")]


async def test_what_the_tokeniser_says_is_what_the_next_prompt_is_measured_by() -> None:
    counted = asyncio.Event()

    async def count(model: str, protocol: str, body: dict[str, Any]) -> int:
        counted.set()
        return 2_000

    lengths = Lengths(count)
    lengths.first(prompt(4_000), "chat", dict)
    await counted.wait()
    await asyncio.sleep(0)
    assert abs(lengths.estimate(prompt(8_000)) - 4_000) < 20
    await lengths.close()


async def test_a_tokeniser_that_never_answers_holds_up_neither_a_call_nor_the_end() -> None:
    async def count(model: str, protocol: str, body: dict[str, Any]) -> int:
        await asyncio.Event().wait()
        raise AssertionError

    lengths = Lengths(count)
    lengths.first(prompt(4_000), "chat", dict)
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await lengths.close()
    assert lengths.estimate(prompt(4_000)) > 0


async def test_a_burst_of_first_calls_is_admitted_by_the_engines_own_count(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = raw(hang=True)  # so that no reply can teach anything
    gateway = await serve(engine, extra={"kv_tokens": 100_000, "counts": 2_000})
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 4_000}]}

    async def call() -> None:
        with contextlib.suppress(httpx.HTTPError):
            await gateway.client.post("/v1/chat/completions", json=body)

    first = asyncio.create_task(call())
    await until(lambda: gateway.gateway.ledger.lengths.knows("m"))
    second = asyncio.create_task(call())
    await until(lambda: len(gateway.books.told(ev.StepArrived)) == 2)
    guessed, counted = (event.prompt_tokens for event in gateway.books.told(ev.StepArrived))
    assert guessed < 1_200
    assert abs(counted - 2_000) < 10
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)


async def test_an_engine_whose_memory_is_not_accounted_for_is_not_asked_to_count(
    engine: ScriptedEngine, serve: Serve
) -> None:
    gateway = await serve(engine, extra={"counts": 2_000})
    assert await gateway.gateway.engines.count_tokens("m", "chat", {}) == 2_000
    assert await gateway.gateway.engines.count_tokens("m", "chat", {}, own=True) is None
