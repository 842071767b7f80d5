"""An engine of kind `auto` that was away when the gateway started, and says what it is when it comes."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref

from agentserve_adapters.detect import installed
from agentserve_adapters.openai_http import OpenAIHttpAdapter
from agentserve_adapters.vllm import VLLMAdapter

from agentserve.config import EngineSettings
from agentserve.live.engines import Engines
from agentserve.live.monitor import Monitor
from agentserve.ports import EngineAdapter, EngineOptions
from agentserve.telemetry import Recorder

AWAY = EngineSettings(id="e1", kind="auto", url="http://127.0.0.1:9")


def adapter_of(options: EngineOptions) -> EngineAdapter:
    kind = "openai_http" if options.kind == "auto" else options.kind
    made: EngineAdapter = installed()[kind](options)
    return made


async def test_it_is_taken_for_the_plainest_until_it_says_what_it_is() -> None:
    said = ["auto", "vllm", "tgi"]

    async def detect(settings: EngineSettings) -> EngineSettings:
        return dataclasses.replace(settings, kind=said.pop(0))

    engines = Engines(adapter_of, detect=detect)
    engine = await engines.add(AWAY)
    try:
        assert not await engines.recognise(engine)
        assert isinstance(engine.adapter, OpenAIHttpAdapter)
        connections = engine.upstream
        assert await engines.recognise(engine)
        assert isinstance(engine.adapter, VLLMAdapter)
        assert engine.upstream is connections, "what runs there is not disturbed"
        assert not await engines.recognise(engine), "it is asked no more"
        assert engine.settings.kind == "vllm"
    finally:
        await engines.stop()


async def test_an_engine_whose_kind_was_named_is_never_asked() -> None:
    async def detect(settings: EngineSettings) -> EngineSettings:
        raise AssertionError("it was asked")

    engines = Engines(adapter_of, detect=detect)
    engine = await engines.add(dataclasses.replace(AWAY, kind="openai_http"))
    try:
        assert not await engines.recognise(engine)
    finally:
        await engines.stop()


async def test_one_that_is_taken_out_while_it_says_so_gets_no_other_adapter() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def detect(settings: EngineSettings) -> EngineSettings:
        asked.set()
        await go_on.wait()
        return dataclasses.replace(settings, kind="vllm")

    engines = Engines(adapter_of, detect=detect)
    engine = await engines.add(AWAY)
    recognising = asyncio.create_task(engines.recognise(engine))
    await asyncio.wait_for(asked.wait(), 10)
    await engines.remove("e1")
    go_on.set()
    assert not await recognising
    assert isinstance(engine.adapter, OpenAIHttpAdapter), "nobody would ever close another one's connections"


async def test_one_that_never_answered_is_shown_to_be_away_and_forgotten_once_it_is_taken_out() -> None:
    engines, recorder = Engines(adapter_of), Recorder()
    monitor = Monitor(engines, lambda event: None, now=lambda: 0.0, telemetry=recorder)
    adapter = weakref.ref((await engines.add(AWAY)).adapter)
    assert b'agentserve_engine_up{engine="e1"} 0.0' in recorder.render("")[1]
    await engines.remove("e1")
    try:
        async with asyncio.timeout(10):
            while adapter() is not None:
                await asyncio.sleep(0.05)
                gc.collect()
    finally:
        await monitor.stop()
