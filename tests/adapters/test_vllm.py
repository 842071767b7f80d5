"""What the vLLM adapter natively does with its engine."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from agentserve_adapters.vllm import VLLMAdapter, plain_salt
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters.conftest import chat, prepared


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


def test_the_vllm_adapter_reports_holdings() -> None:
    from agentserve.ports import ReportsHoldings

    assert issubclass(VLLMAdapter, ReportsHoldings)


async def test_a_vllm_that_shows_no_metrics_is_not_said_to_show_its_load(build: Any) -> None:
    adapter, _ = build("vllm", {"GET /metrics": (404, {})})
    assert dict((await adapter.probe()).mechanisms)["load"].startswith("estimated")
