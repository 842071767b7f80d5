"""What each adapter natively does with its own engine."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from agentserve_adapters.anthropic import TIERS, says_cache
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.incarnation import Incarnation
from agentserve_adapters.llamacpp import SlotBook, file_of
from agentserve_adapters.prompts import warm_request
from agentserve_adapters.readings import whole
from agentserve_adapters.retention import nearest
from agentserve_adapters.trtllm import turned
from agentserve_adapters.vllm import VLLMAdapter, plain_salt
from agentserve_adapters.wire import plain_url
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.ports import Hints, Outcome, Outgoing, ProgramPrefix


def hints(**more: Any) -> Hints:
    return Hints(**{"program": "p1", "tenant": "t1", "step": "s1", "priority": 3, **more})


async def prepared(adapter: Any, body: dict[str, Any], protocol: str = "chat", **more: Any) -> Outgoing:
    await adapter.probe()
    outgoing = Outgoing(protocol=protocol, path="/", body=body)
    adapter.prepare(outgoing, hints(**more))
    return outgoing


def chat(body: dict[str, Any]) -> ProgramPrefix:
    return ProgramPrefix(protocol="chat", body=body)


# -- vllm


async def test_vllm_gauges_are_read_under_new_names(build: Any) -> None:
    adapter, _ = build("vllm")
    load = await adapter.load()
    assert (load.running, load.waiting, load.kv_used_share) == (3, 2, 0.25)
    assert (load.preemptions, load.prefix_queries_tokens, load.prefix_hits_tokens) == (4, 1000, 640)


async def test_vllm_gauges_are_read_under_old_names(build: Any, old_vllm: Any) -> None:
    adapter, _ = build("vllm", old_vllm)
    load = await adapter.load()
    assert (load.kv_used_share, load.prefix_queries_tokens, load.prefix_hits_tokens) == (0.5, 100, 60)
    assert (await adapter.probe()).kv_tokens == 1600  # one block of 101 never holds anything


async def test_vllm_capacity_is_the_engines_own_sum_less_the_placeholder_block(build: Any) -> None:
    caps = await build("vllm")[0].probe()
    assert caps.kv_tokens == 16_000
    assert caps.block_tokens == 16


async def test_vllm_session_and_priority_are_headers_so_that_the_clients_bytes_travel(
    build: Any, body: Any
) -> None:
    adapter, _ = build("vllm", extra={"priority": True})
    outgoing = await prepared(adapter, body)
    assert outgoing.headers == {"x-session-id": "p1", "x-vllm-priority": "3"}
    assert not outgoing.changed


async def test_an_older_vllm_gets_its_priority_in_the_body(build: Any, body: Any, old_vllm: Any) -> None:
    adapter, _ = build("vllm", old_vllm, extra={"priority": True})
    outgoing = await prepared(adapter, body)
    assert body["priority"] == 3
    assert outgoing.changed
    assert outgoing.headers == {}


async def test_vllm_gets_no_priority_unless_it_schedules_by_it(build: Any, body: Any) -> None:
    adapter, _ = build("vllm")
    outgoing = await prepared(adapter, body)
    assert "x-vllm-priority" not in outgoing.headers
    assert "priority" not in body


@pytest.mark.parametrize(("policy", "takes"), [("priority", True), ("fcfs", False)])
async def test_vllm_in_development_mode_tells_its_policy_and_that_wins(
    build: Any, policy: str, takes: bool
) -> None:
    info = {"vllm_config": {"scheduler_config": {"policy": policy, "max_num_seqs": 64}}}
    adapter, _ = build("vllm", {"GET /server_info": info}, extra={"priority": not takes})
    caps = await adapter.probe()
    assert caps.priority is takes
    assert caps.seqs_max == 64


async def test_vllm_is_asked_whether_it_reports_cached_tokens(build: Any) -> None:
    assert (await build("vllm")[0].probe()).reports_cached_tokens
    silent = {"POST /v1/completions": {"usage": {"prompt_tokens": 2, "prompt_tokens_details": None}}}
    adapter, _ = build("vllm", silent)
    caps = await adapter.probe()
    assert not caps.reports_cached_tokens
    assert "--enable-prompt-tokens-details" in dict(caps.unlocks)


async def test_vllm_is_tried_once_a_run_and_again_after_a_restart(build: Any) -> None:
    adapter, engine = build("vllm")
    await adapter.probe()
    await adapter.probe()
    assert len(engine.bodies("POST /v1/completions")) == 1
    engine.shape["GET /version"] = {"version": "0.33.0"}
    await adapter.probe()
    assert len(engine.bodies("POST /v1/completions")) == 2


async def test_a_vllm_without_a_list_of_routes_is_asked_path_by_path(build: Any) -> None:
    adapter, _ = build("vllm", {"GET /openapi.json": (404, {}), "GET /v1/messages": (405, {})})
    assert (await adapter.probe()).protocols == {"chat", "completions", "messages"}


async def test_a_passive_probe_of_vllm_runs_nothing(build: Any) -> None:
    adapter, engine = build("vllm", extra={"probe": "passive"})
    await adapter.probe()
    assert not engine.bodies("POST /v1/completions")


async def test_vllm_salts_are_made_acceptable_and_the_clients_own_stands(build: Any, body: Any) -> None:
    adapter, _ = build("vllm")
    await prepared(adapter, body, cache_salt="tenant/one")
    assert body["cache_salt"] == plain_salt("tenant/one")
    body["cache_salt"] = "mine"
    await prepared(adapter, body, cache_salt="other")
    assert body["cache_salt"] == "mine"


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_salt_becomes_one_that_vllm_takes(salt: str) -> None:
    plain = plain_salt(salt)
    assert len(plain) <= 128
    assert not set(plain) & set("@/\\\x00")


async def test_a_vllm_warm_has_the_worst_priority_and_the_programs_session(build: Any, body: Any) -> None:
    adapter, engine = build("vllm", extra={"priority": True})
    await adapter.probe()
    await adapter.warm("p1", chat(body))
    sent = engine.requests[-1].headers
    assert int(sent["x-vllm-priority"]) == 2**31 - 1
    assert sent["x-session-id"] == "p1"


async def test_vllm_with_a_cpu_tier_is_told_not_to_keep_what_will_not_return(build: Any, body: Any) -> None:
    page = '# TYPE vllm:kv_offload_load_bytes counter\nvllm:kv_offload_load_bytes_total{engine="0"} 1.0\n'
    adapter, _ = build("vllm", {"GET /metrics": page})
    await prepared(adapter, body)
    assert "kv_transfer_params" not in body
    await prepared(adapter, body, program_final=True)
    assert body["kv_transfer_params"] == {"max_offload_tokens": 0}


async def test_vllm_says_where_it_publishes_rank_by_rank(build: Any) -> None:
    source = {
        "publisher": "zmq",
        "endpoint": "tcp://*:5557",
        "replay_endpoint": "tcp://*:6557",
        "topic": "kv",
    }
    sources = {"0": source, "1": {**source, "endpoint": "tcp://*:5558"}, "2": {"publisher": "null"}}
    adapter, _ = build("vllm", {"GET /kv_event_sources": sources})
    found = await adapter.kv_sources()
    assert [s.endpoint for s in found] == ["tcp://engine:5557", "tcp://engine:5558"]
    assert found[0].replay_endpoint == "tcp://engine:6557"
    assert (await adapter.probe()).kv_events


async def test_a_restarted_vllm_is_another_run_and_may_be_asked_again(
    build: Any, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    adapter, engine = build("vllm", {"POST /v1/chat/completions": (404, {})})
    await adapter.probe()
    first = await adapter.load()
    await adapter.warm("p1", chat(body))
    assert adapter.actions.refused
    engine.shape["GET /metrics"] = engine.shape["GET /metrics"].replace("1.7e+09", "1.8e+09")
    with caplog.at_level(logging.WARNING):
        second = await adapter.load()
    assert second.boot != first.boot
    assert not adapter.actions.refused
    assert "was restarted" in caplog.text


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


# -- shared parts


def test_an_exposition_sums_ranks_and_tells_zero_from_absent() -> None:
    text = 'x:a{engine="0"} 1\nx:a{engine="1"} 2\nx:h_bucket{le="1"} 9\ny:b 5\n'
    page = Exposition(text, prefixes=("x:",))
    assert page.total("x:a") == 3
    assert page.mean("x:a") == 1.5
    assert page.total("x:none") is None
    assert page.total("x:none", "x:a") == 3
    assert page.total("y:b") is None
    assert list(page.names()) == ["x:a"]


@pytest.mark.parametrize("number", ["NaN", "+Inf", "-Inf", "-5", "1e30"])
def test_a_gauge_that_is_no_sensible_number_is_absent(number: str) -> None:
    page = Exposition(f"x:a {number}\nx:b 2\n", prefixes=("x:",))
    assert (page.count("x:a"), page.mean("x:a"), page.count("x:b")) == (None, None, 2)
    assert whole(number) is None


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_an_exposition(text: str) -> None:
    Exposition(text, prefixes=("a", "v", "x"))


def test_a_run_ends_when_a_counter_shrinks_or_a_mark_changes() -> None:
    run = Incarnation()
    assert not run.observe(marks={"version": "1"}, counters={"n": 5})
    assert not run.observe(marks={"version": None}, counters={"n": 7})
    assert run.observe(counters={"n": 6})
    assert not run.observe(marks={"version": "2"})  # of the new run nothing is known yet
    assert run.observe(marks={"version": "3"})
    assert run.boot == "2"


def test_a_warm_keeps_what_makes_the_prompt_and_drops_what_makes_the_output() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"thinking": True},
        "stream_options": {"include_usage": True},
        "stop": ["y"],
        "n": 3,
    }
    request = warm_request(ProgramPrefix(protocol="chat", body=body))
    assert request is not None
    path, sent = request
    assert path == "/v1/chat/completions"
    assert sent["tools"] == body["tools"]
    assert sent["chat_template_kwargs"] == {"thinking": True}
    assert sent["messages"] == body["messages"]
    assert not {"stop", "n", "stream_options"} & set(sent)
    assert warm_request(ProgramPrefix(protocol="embeddings", body={"input": "x"})) is None


def test_warms_of_the_other_protocols_ask_for_one_token_in_their_own_words() -> None:
    text = warm_request(ProgramPrefix(protocol="completions", body={"prompt": "ab", "max_tokens": 9}))
    assert text == ("/v1/completions", {"prompt": "ab", "max_tokens": 1, "stream": False})
    reply = warm_request(ProgramPrefix(protocol="responses", body={"input": "x", "store": True}))
    assert reply is not None
    assert (reply[1]["max_output_tokens"], reply[1]["store"]) == (1, False)


def test_addresses_are_taken_with_and_without_their_version_path() -> None:
    assert plain_url("http://h:1/v1/") == plain_url("http://h:1") == "http://h:1"
    assert plain_url("https://h/base/v1") == "https://h/base"
    with pytest.raises(Exception, match="http://host:port"):
        plain_url("h:8000")


async def test_no_redirect_is_followed_with_the_engines_key(build: Any) -> None:
    adapter, engine = build("openai_http", {"GET /v1/models": (302, "")}, api_key="secret")
    assert (await adapter.probe()).models == ()
    assert len(engine.requests) == 1
    assert engine.requests[0].headers["authorization"] == "Bearer secret"


def test_the_vllm_adapter_reports_holdings() -> None:
    from agentserve.ports import ReportsHoldings

    assert issubclass(VLLMAdapter, ReportsHoldings)
