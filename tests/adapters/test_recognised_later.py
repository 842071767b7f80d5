"""An engine of kind `auto` that was away when the gateway started, and says what it is when it comes."""

from __future__ import annotations

import dataclasses

from agentserve_adapters.detect import installed
from agentserve_adapters.openai_http import OpenAIHttpAdapter
from agentserve_adapters.vllm import VLLMAdapter

from agentserve.config import EngineSettings
from agentserve.live.engines import Engines
from agentserve.ports import EngineAdapter, EngineOptions

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
