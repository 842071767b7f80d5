"""When an engine is lost, and when it is only busy."""

from __future__ import annotations

import asyncio

import pytest

from agentserve.core import events as ev
from agentserve.live.monitor import ProbeSettings
from tests.live.conftest import ScriptedEngine, Serve, until

IMPATIENT = ProbeSettings(interval_s=0.02, timeout_s=0.05)


async def test_an_engine_whose_probes_time_out_is_lost(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, probes=IMPATIENT)

    async def never() -> None:
        await asyncio.sleep(60)

    running.adapter.before_load = never
    await until(lambda: running.books.told(ev.EngineLost))
    assert not running.gateway.engines["e1"].up


async def test_an_engine_that_serves_while_its_probes_time_out_is_busy_and_not_lost(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, probes=IMPATIENT)
    one = running.gateway.engines["e1"]
    probes = 0

    async def heard_but_silent() -> None:
        nonlocal probes
        probes += 1
        await asyncio.sleep(0.01)
        running.gateway.monitor.heard(one)
        await asyncio.sleep(60)

    running.adapter.before_load = heard_but_silent
    await until(lambda: probes > 6)
    assert one.up
    assert not running.books.told(ev.EngineLost)


async def test_a_restarted_engine_has_lost_what_it_held(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, probes=IMPATIENT)
    running.adapter.boot = "2"
    await until(lambda: len(running.books.told(ev.EngineBack)) == 2)
    assert [lost.reason for lost in running.books.told(ev.EngineLost)] == ["restarted"]


async def test_an_engine_that_lists_no_model_is_told_of_since_any_call_goes_there(
    engine: ScriptedEngine, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(engine, probes=IMPATIENT)
    assert "lists no model" in caplog.text


async def test_an_engine_whose_answers_cannot_be_read_is_told_of_once(
    engine: ScriptedEngine, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    running = await serve(engine, probes=IMPATIENT)
    probes = 0

    async def senseless() -> None:
        nonlocal probes
        probes += 1
        raise ZeroDivisionError("of its making")

    running.adapter.before_load = senseless
    await until(lambda: probes > 4)
    assert not running.gateway.engines["e1"].up
    told = [r for r in caplog.records if "probing engine e1 failed" in r.getMessage()]
    assert len(told) == 1
