"""What every adapter keeps, whatever its engine."""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any

import httpx
import msgspec
import pytest
from agentserve_adapters.detect import detect

from agentserve.errors import EngineError, EngineTimeout
from agentserve.ports import (
    Capabilities,
    EngineAdapter,
    EngineLoad,
    Hints,
    Outcome,
    Outgoing,
    ProgramPrefix,
    Receipt,
)

KINDS = [
    "anthropic",
    "dynamo",
    "llamacpp",
    "lmcache",
    "lmdeploy",
    "ollama",
    "openai",
    "openai_http",
    "sglang",
    "tgi",
    "trtllm",
    "vllm",
]
HINTS = Hints(program="p1", tenant="t1", step="s1", priority=3, expected_output_tokens=50)


def protocol_of(kind: str) -> str:
    return "messages" if kind == "anthropic" else "chat"


def outgoing_of(kind: str, body: dict[str, Any]) -> Outgoing:
    return Outgoing(protocol=protocol_of(kind), path="/", body=body)


def prefix_of(kind: str, body: dict[str, Any]) -> ProgramPrefix:
    return ProgramPrefix(protocol=protocol_of(kind), body=body)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_it_is_an_engine_adapter(kind: str, build: Any) -> None:
    adapter, _ = build(kind)
    assert isinstance(adapter, EngineAdapter)
    assert adapter.kind == kind
    assert adapter.url.startswith("http")
    assert not adapter.url.endswith("/v1")
    assert adapter.app is None


async def test_a_probe_tells_what_the_engine_is_and_how_each_thing_is_done(kind: str, build: Any) -> None:
    adapter, _ = build(kind)
    caps = await adapter.probe()
    assert isinstance(caps, Capabilities)
    assert caps.kind == kind
    assert caps.models == ("tiny",)
    assert protocol_of(kind) in caps.protocols
    means = dict(caps.mechanisms)
    assert {"priority", "pin", "unpin", "warm", "residency", "load", "kv_capacity", "tokenise"} <= set(means)
    words = ("native", "emulated", "reserved", "estimated", "named", "unknown", "clipped")
    assert all(text.startswith(words) for name, text in means.items() if name != "workers")
    assert all(flag and gives for flag, gives in caps.unlocks)


async def test_what_is_claimed_as_native_is_said_to_be_native(kind: str, build: Any) -> None:
    caps = await build(kind)[0].probe()
    means = dict(caps.mechanisms)
    assert means["priority"].startswith("native") == caps.priority
    assert means["pin"].startswith("native") == (caps.pin == "native")
    assert means["tokenise"].startswith("native") == caps.tokenises


async def test_the_operators_word_on_capacity_and_models_wins(kind: str, build: Any) -> None:
    adapter, _ = build(kind, kv_tokens=777, models=("mine",))
    caps = await adapter.probe()
    assert caps.kv_tokens == 777
    assert caps.models == ("mine",)


async def test_load_is_a_reading_without_impossible_numbers(kind: str, build: Any) -> None:
    adapter, _ = build(kind)
    await adapter.probe()
    load = await adapter.load()
    assert isinstance(load, EngineLoad)
    assert load.running is None or load.running >= 0
    assert load.waiting is None or load.waiting >= 0
    assert load.kv_used_share is None or 0 <= load.kv_used_share <= 1
    assert (await adapter.load()).boot == load.boot


async def test_preparing_keeps_the_prompt_and_says_whether_the_body_changed(
    kind: str, build: Any, body: dict[str, Any]
) -> None:
    adapter, _ = build(kind)
    await adapter.probe()
    outgoing = outgoing_of(kind, body)
    before, messages = copy.deepcopy(body), body["messages"]
    adapter.prepare(outgoing, HINTS)
    assert outgoing.body is body
    assert body["messages"] is messages
    assert messages == before["messages"]
    assert outgoing.changed == (body != before)
    assert all(name == name.lower() for name in outgoing.headers)
    msgspec.json.encode(body)


async def test_preparing_works_before_the_first_probe(kind: str, build: Any, body: dict[str, Any]) -> None:
    adapter, engine = build(kind)
    adapter.prepare(outgoing_of(kind, body), HINTS)
    assert engine.asked == []


async def test_preparing_twice_is_preparing_once(kind: str, build: Any, body: dict[str, Any]) -> None:
    adapter, _ = build(kind)
    await adapter.probe()
    adapter.prepare(outgoing_of(kind, body), HINTS)
    once = copy.deepcopy(body)
    adapter.prepare(outgoing_of(kind, body), HINTS)
    assert body == once


async def test_actions_are_answered_with_receipts(kind: str, build: Any, body: dict[str, Any]) -> None:
    adapter, _ = build(kind)
    await adapter.probe()
    prefix = prefix_of(kind, body)
    receipts = [
        await adapter.pin("p1", prefix, 40, 30.0),
        await adapter.pin("p2", None, 40, 30.0),
        await adapter.warm("p1", prefix),
        await adapter.unpin("p1"),
        await adapter.unpin("never pinned"),
        await adapter.abort("r1"),
    ]
    assert all(isinstance(r, Receipt) for r in receipts)
    assert all(r.outcome in (Outcome.ACCEPTED, Outcome.CLIPPED) for r in receipts), receipts
    assert all(r.detail for r in receipts)


async def test_every_action_and_its_answer_are_on_record_as_an_envelope(
    kind: str, build: Any, body: dict[str, Any]
) -> None:
    adapter, _ = build(kind)
    await adapter.probe()
    await adapter.pin("p1", prefix_of(kind, body), 40, 30.0)
    record = adapter.actions.records[-1]
    envelope = record.action.envelope()
    (action,) = envelope["actions"]
    assert action["action_type"] == "kv.pin"
    assert action["payload"] == {"program": "p1", "tokens": 40, "ttl_s": 30.0}
    assert set(envelope) == {"protocol_version", "message_id", "actions"}
    assert isinstance(record.receipt, Receipt)


async def test_a_warm_is_the_last_prompt_again_with_one_token(
    kind: str, build: Any, body: dict[str, Any]
) -> None:
    adapter, engine = build(kind)
    await adapter.probe()
    engine.asked.clear()
    before = copy.deepcopy(body)
    receipt = await adapter.warm("p1", prefix_of(kind, body))
    assert body == before
    assert (receipt.prompt_tokens, receipt.cached_tokens) == (40, 32)
    path = "POST /v1/messages" if kind == "anthropic" else "POST /v1/chat/completions"
    (sent,) = engine.bodies(path)
    assert sent["messages"] == before["messages"]
    assert sent["max_tokens"] == 1
    assert sent["stream"] is False


async def test_an_engine_that_is_away_is_an_engine_error(kind: str, build: Any, body: dict[str, Any]) -> None:
    adapter, engine = build(kind)
    engine.away = True
    with pytest.raises(EngineError):
        await adapter.probe()
    with pytest.raises(EngineError):
        await adapter.warm("p1", prefix_of(kind, body))
    if kind not in ("anthropic", "openai"):
        with pytest.raises(EngineError):
            await adapter.load()


async def test_refusals_degrade_with_one_warning(
    kind: str, build: Any, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    adapter, engine = build(kind)
    await adapter.probe()
    kept = {"GET /v1/models": engine.shape["GET /v1/models"]}
    if kind == "sglang":
        kept["POST /tokenize"] = engine.shape["POST /tokenize"]
    engine.shape = kept  # whatever else it had is gone
    prefix = prefix_of(kind, body)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for receipt in (
                await adapter.pin("p1", prefix, 40, 30.0),
                await adapter.warm("p1", prefix),
                await adapter.unpin("p1"),
                await adapter.abort("r1"),
            ):
                assert receipt.mode in ("reserved", "none") or receipt.outcome is not Outcome.REFUSED
    said = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert len(said) == len({text.split(" (")[0] for text in said}), said


async def test_what_was_refused_is_not_asked_again(kind: str, build: Any, body: dict[str, Any]) -> None:
    adapter, engine = build(kind)
    await adapter.probe()
    engine.shape = {"GET /v1/models": engine.shape["GET /v1/models"]}
    prefix = prefix_of(kind, body)
    receipts = [await adapter.warm("p1", prefix) for _ in range(3)]
    assert all(r.outcome is Outcome.REFUSED for r in receipts)
    path = "POST /v1/messages" if kind == "anthropic" else "POST /v1/chat/completions"
    assert len(engine.bodies(path)) == 1


@pytest.mark.parametrize(
    "junk", ["", "<html>hello</html>", "[]", "{}", "[[[", "null", '{"data": 7}', "\x00\xff"]
)
async def test_junk_answers_never_break_a_probe(kind: str, build: Any, junk: str) -> None:
    adapter, engine = build(kind)
    engine.shape = dict.fromkeys(engine.shape, junk)
    try:
        caps = await adapter.probe()
        load = await adapter.load()
    except EngineError:
        return
    assert isinstance(caps, Capabilities)
    assert isinstance(load, EngineLoad)


async def test_counting_tokens_is_the_engines_count_or_none(
    kind: str, build: Any, body: dict[str, Any]
) -> None:
    adapter, _ = build(kind)
    caps = await adapter.probe()
    count = await adapter.count_tokens(protocol_of(kind), body)
    assert count == (3 if caps.tokenises else None)
    assert await adapter.count_tokens("embeddings", {"input": "x"}) is None


async def test_it_stops_whether_or_not_it_started(kind: str, build: Any) -> None:
    adapter, _ = build(kind)
    await adapter.stop()
    await adapter.start()
    await adapter.probe()
    await adapter.stop()
    await adapter.stop()


async def test_its_kv_events_can_be_listened_to_and_left(kind: str, build: Any) -> None:
    adapter, _ = build(kind)
    await adapter.probe()
    events = aiter(adapter.kv_events())
    listening = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.02)
    assert not listening.done()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await adapter.stop()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "lmcache"], ids=str)
async def test_its_kind_is_told_from_its_address(
    kind: str, shapes: Any, urls: dict[str, str], fake_engine: Any
) -> None:
    found = await detect(urls.get(kind, "http://engine:8000"), transport=fake_engine(shapes[kind]))
    assert found.kind == kind
    assert found.recognised.evidence


async def test_an_engine_that_keeps_silent_is_not_taken_for_another_kind_of_server() -> None:
    def hangs(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("nothing came", request=request)

    with pytest.raises(EngineTimeout, match="answers nothing"):
        await detect("http://engine:8000", transport=httpx.MockTransport(hangs))


async def test_what_nobody_knows_is_an_error_that_says_what_to_do(fake_engine: Any) -> None:
    with pytest.raises(EngineError, match="name its kind"):
        await detect("http://engine:8000", transport=fake_engine({"GET /": "<html>"}))
