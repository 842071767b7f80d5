"""What each adapter natively does with its own engine."""

from __future__ import annotations

from typing import Any

import pytest
from agentserve_adapters.anthropic import TIERS, says_cache
from agentserve_adapters.llamacpp import SlotBook, file_of
from agentserve_adapters.retention import nearest
from agentserve_adapters.trtllm import turned
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.ports import Outcome
from tests.adapters.conftest import chat, prepared

# -- sglang


async def test_sglang_priority_is_turned_round(build: Any, body: Any) -> None:
    await prepared(build("sglang")[0], body)
    assert body["priority"] == -3


async def test_sglang_started_low_first_gets_ours_as_it_is(build: Any, body: Any, shapes: Any) -> None:
    info = {**shapes["sglang"]["GET /server_info"], "schedule_low_priority_values_first": True}
    await prepared(build("sglang", {"GET /server_info": info})[0], body)
    assert body["priority"] == 3


async def test_sglang_sessions_are_soft_pins_released_by_name(build: Any, body: Any) -> None:
    adapter, engine = build("sglang")
    await prepared(adapter, body)
    assert body["session_id"] == "p1"
    receipt = await adapter.pin("p1", chat(body), 40, 30.0)
    assert (receipt.outcome, receipt.mode) == (Outcome.ACCEPTED, "native")
    await adapter.unpin("p1")
    assert engine.bodies("POST /close_session") == [{"session_id": "p1"}]


async def test_sglang_streaming_sessions_are_hard_pins_with_an_idle_time(
    build: Any, body: Any, shapes: Any
) -> None:
    info = {**shapes["sglang"]["GET /server_info"], "enable_streaming_session": True}
    adapter, engine = build("sglang", {"GET /server_info": info})
    await adapter.probe()
    receipt = await adapter.pin("p1", chat(body), 40, 30.0)
    assert receipt.mode == "native"
    assert receipt.cached_tokens == 32
    (opened,) = engine.bodies("POST /open_session")
    assert (opened["timeout"], opened["streaming"]) == (30.0, True)
    (held,) = engine.bodies("POST /generate")
    assert held["input_ids"] == [5, 6, 7]
    await adapter.unpin("p1")
    assert {"session_id": opened["session_id"]} in engine.bodies("POST /close_session")


async def test_sglang_says_where_it_publishes(build: Any, shapes: Any) -> None:
    events = {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "dp_size": 2}
    info = {**shapes["sglang"]["GET /server_info"], "kv_events": events}
    adapter, _ = build("sglang", {"GET /server_info": info})
    assert [s.endpoint for s in await adapter.kv_sources()] == ["tcp://engine:5557", "tcp://engine:5558"]


# -- trtllm


async def test_trtllm_is_spared_fields_that_it_would_refuse(build: Any, body: Any) -> None:
    body.update({"session_id": "x", "program_id": "y", "parallel_tool_calls": True})
    outgoing = await prepared(build("trtllm", extra={"priority": True})[0], body)
    assert set(body) == {"model", "messages", "max_tokens", "stream", "priority"}
    assert outgoing.changed
    assert outgoing.headers["x-session-id"] == "p1"


@settings(deadline=None)
@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_trtllm_priorities_keep_our_order_within_their_range(a: int, b: int) -> None:
    assert 0.0 <= turned(a) <= 1.0
    if a < b:
        assert turned(a) >= turned(b)
    assert turned(0) == 0.5
    assert turned(-1) > turned(1)


async def test_trtllm_releases_what_is_the_programs_own_and_leaves_the_system_prompt(
    build: Any, body: Any
) -> None:
    body["messages"] = [{"role": "system", "content": "shared"}, {"role": "user", "content": "own"}]
    adapter, engine = build("trtllm")
    await adapter.probe()
    await adapter.pin("p1", chat(body), 40, 30.0)
    receipt = await adapter.unpin("p1")
    assert receipt.mode == "native"
    (sent,) = engine.bodies("POST /_control/kv_cache/truncate")
    assert sent["messages_to_retain"] == [{"role": "system", "content": "shared"}]
    assert sent["messages"] == body["messages"]


async def test_trtllm_events_are_polled_and_a_lost_one_clears(build: Any) -> None:
    block = {"block_hash": -5, "tokens": [{"token_id": 1}, {"token_id": 2}]}
    polled = [
        {"event_id": 1, "data": {"type": "stored", "parent_hash": None, "blocks": [block]}},
        {"event_id": 3, "data": {"type": "removed", "block_hashes": [-5]}},
    ]
    adapter, _ = build("trtllm", {"POST /kv_cache_events": polled}, extra={"kv_events": True})
    events = adapter.kv_events()
    seen = [await anext(events) for _ in range(3)]
    await events.aclose()
    assert [c.kind for c in seen] == ["stored", "cleared", "removed"]
    assert seen[0].hashes == seen[2].hashes
    assert seen[0].block_tokens == 2


# -- dynamo


async def test_dynamo_hints_join_those_of_the_client(build: Any, body: Any) -> None:
    body["nvext"] = {"agent_hints": {"osl": 7}, "ignore": 1}
    outgoing = await prepared(build("dynamo")[0], body, expected_output_tokens=50, program_final=True)
    assert body["nvext"] == {"agent_hints": {"priority": -3, "osl": 7}, "ignore": 1}
    assert outgoing.headers["x-dynamo-session-id"] == "p1"
    assert outgoing.headers["x-dynamo-session-final"] == "true"


# -- llamacpp


async def test_a_pinned_program_keeps_its_slot_and_others_get_the_rest(build: Any, body: Any) -> None:
    adapter, _ = build("llamacpp")
    await prepared(adapter, dict(body))
    assert (await adapter.pin("p1", chat(body), 40, 30.0)).mode == "native"
    slots = set()
    for program in ("p2", "p3", "p4", "p5"):
        outgoing = await prepared(adapter, dict(body), program=program)
        slots.add(outgoing.body["id_slot"])
    assert slots == {1, 2}
    assert (await prepared(adapter, dict(body))).body["id_slot"] == 0


async def test_a_program_whose_slot_was_taken_is_restored_from_its_file(build: Any, body: Any) -> None:
    adapter, engine = build("llamacpp", {"POST /slots/0": (400, {"error": {"message": "Invalid filename"}})})
    await adapter.probe()
    engine.shape["POST /slots/0"] = {"id_slot": 0, "n_saved": 40, "n_restored": 40}
    await adapter.pin("p1", chat(body), 40, 30.0)
    assert engine.bodies("POST /slots/0")[-1] == {"filename": file_of("p1")}
    await adapter.unpin("p1")
    for program in ("p2", "p3", "p4"):
        await prepared(adapter, dict(body), program=program)
    receipt = await adapter.warm("p1", chat(body))
    assert receipt.mode == "native"
    assert receipt.cached_tokens == 40
    assert not engine.bodies("POST /v1/chat/completions")


def test_the_last_slot_is_never_kept_from_everyone() -> None:
    book = SlotBook()
    book.resize(2)
    assert book.pin("p1") is not None
    assert book.pin("p2") is None
    assert book.place("p2") is not None


@settings(deadline=None)
@given(st.text())
def test_no_programs_name_leads_out_of_the_slot_directory(program: str) -> None:
    name = file_of(program)
    assert name.isascii()
    assert not set(name) & set("/\\ \x00")
    assert ".." not in name


# -- ollama, hosted, lmcache


async def test_ollama_keeps_weights_and_says_that_it_is_not_the_prefix(build: Any, body: Any) -> None:
    adapter, engine = build("ollama")
    receipt = await adapter.pin("p1", chat(body), 40, 29.5)
    assert (receipt.outcome, receipt.mode) == (Outcome.CLIPPED, "reserved")
    assert engine.bodies("POST /api/generate")[0]["keep_alive"] == "30s"


async def test_an_anthropic_pin_is_the_nearest_lifetime_of_the_next_request(build: Any, body: Any) -> None:
    adapter, _ = build("anthropic")
    receipt = await adapter.pin("p1", None, 10_000, 120.0)
    assert receipt.outcome is Outcome.ACCEPTED
    await prepared(adapter, body, protocol="messages")
    assert body["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
    await adapter.unpin("p1")
    plain = {"model": "tiny", "messages": []}
    await prepared(adapter, plain, protocol="messages")
    assert "cache_control" not in plain


async def test_an_anthropic_client_that_steers_its_cache_is_left_alone(build: Any, body: Any) -> None:
    adapter, _ = build("anthropic")
    await adapter.pin("p1", None, 10_000, 120.0)
    block = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    body["messages"] = [{"role": "user", "content": [block]}]
    assert says_cache(body)
    await prepared(adapter, body, protocol="messages")
    assert "cache_control" not in body


def test_keeping_is_weighed_against_making_anew() -> None:
    short = nearest(TIERS, tokens=1000, ttl_s=60.0)
    assert (short.tier.name, short.pays, short.clipped) == ("5m", True, False)
    assert short.keep == pytest.approx(1350)
    long = nearest(TIERS, tokens=1000, ttl_s=1800.0)
    assert (long.tier.name, long.pays) == ("1h", False)
    assert nearest(TIERS, tokens=1000, ttl_s=1800.0, cached=True).pays
    assert nearest(TIERS, tokens=1000, ttl_s=9000.0).clipped


async def test_an_openai_program_has_one_key_and_its_pin_is_a_retention(build: Any, body: Any) -> None:
    adapter, _ = build("openai")
    await adapter.pin("p1", None, 10_000, 3600.0)
    await prepared(adapter, body)
    assert body["prompt_cache_retention"] == "24h"
    assert "p1" not in body["prompt_cache_key"]
    assert len(body["prompt_cache_key"]) <= 64


async def test_lmcache_pins_by_the_engines_own_tokens_and_says_what_was_kept(build: Any, body: Any) -> None:
    adapter, engine = build("lmcache")
    await adapter.probe()
    receipt = await adapter.pin("p1", chat(body), 3, 30.0)
    assert receipt.mode == "native"
    (sent,) = engine.bodies("POST /pin")
    assert sent == {"instance_id": "i0", "location": "LocalCPUBackend", "tokens": [5, 6, 7]}
    engine.shape["POST /pin"] = {"event_id": "e", "num_tokens": 0}
    assert (await adapter.pin("p2", chat(body), 3, 30.0)).outcome is Outcome.REFUSED


async def test_a_pin_longer_than_lmcaches_own_time_is_clipped(build: Any, body: Any) -> None:
    adapter, _ = build("lmcache")
    assert (await adapter.pin("p1", chat(body), 3, 900.0)).outcome is Outcome.CLIPPED
