"""Who may come in, and how much of it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.config import EngineSettings, Settings, TenantSettings
from agentserve.core import events as ev
from agentserve.errors import ConfigError, NotAuthorised, Overloaded
from agentserve.live.auth import (
    ADMIN,
    CALL,
    Caller,
    ListedKey,
    ListedKeys,
    check_openness,
    digest_of,
    is_loopback,
)
from agentserve.live.quotas import Bucket, Quotas
from tests.live.conftest import ScriptedEngine, Serve, raw, until

KEYS = {
    "as-call": Caller(tenant="a", key_id="k1"),
    "as-none": Caller(tenant="a", scopes=frozenset(), key_id="k2"),
}


async def test_a_request_without_a_valid_key_goes_nowhere(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic as-call"}, 401),
        ({"authorization": "Bearer " + "x" * 10_000}, 401),
        ({"authorization": "Bearer as-none"}, 403),
        ({"authorization": "Bearer as-call"}, 200),
        ({"authorization": "bearer as-call"}, 200),
        ({"x-api-key": "as-call"}, 200),
    ):
        reply = await running.client.post(
            "/v1/chat/completions", json={"model": "m", "messages": []}, headers=headers
        )
        assert reply.status_code == status, headers
    assert len(engine.asked) == 3
    refused = await running.client.post("/v1/messages", json={}, headers={"x-api-key": "wrong"})
    assert refused.json()["error"]["type"] == "authentication_error"
    assert "wrong" not in refused.text


async def test_every_path_but_health_needs_a_key(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    for path in ("/v1/models", "/v1/models/m", "/v1/programs/x", "/v1/responses/x", "/v1/conversations/x"):
        before = running.books.counts.get("refusals", 0)
        assert (await running.client.get(path)).status_code == 401, path
        assert running.books.counts["refusals"] == before + 1
    for path in ("/v1/messages/count_tokens", "/v1/programs", "/v1/conversations", "/drain"):
        assert (await running.client.post(path, json={})).status_code == 401, path
    assert (await running.client.get("/healthz")).status_code == 200


async def test_a_proxy_of_this_machine_opens_the_metrics_to_nobody(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    assert (
        await running.client.get("/metrics")
    ).status_code == 404  # they are switched off here, and nobody asks
    for header in ("x-forwarded-for", "forwarded", "via", "x-real-ip"):
        assert (await running.client.get("/metrics", headers={header: "203.0.113.7"})).status_code == 401


async def test_a_keys_secret_is_never_logged(
    engine: ScriptedEngine, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    running = await serve(engine, keys=ListedKeys.of(KEYS))
    engine.otherwise = raw(b"nonsense\r\n\r\n", close=True)
    for key in ("as-call", "as-wrong-key"):
        await running.client.post(
            "/v1/chat/completions?x=%0aforged",
            json={"model": "m"},
            headers={"authorization": f"Bearer {key}"},
        )
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("agentserve")]
    assert not [line for line in ours if "as-call" in line or "as-wrong-key" in line or "\n" in line]


def test_an_expired_key_is_no_key() -> None:
    keys = ListedKeys([ListedKey(digest=digest_of("k"), caller=Caller(tenant="a"), expires_at=10.0)])
    assert keys.check("k", 9.9) is not None
    assert keys.check("k", 10.0) is None


def test_an_open_gateway_serves_strangers_only_when_told_to() -> None:
    check_openness("127.0.0.1", open_mode=True, allow_open=False)
    check_openness("0.0.0.0", open_mode=False, allow_open=False)
    check_openness("0.0.0.0", open_mode=True, allow_open=True)
    with pytest.raises(ConfigError, match="without API keys"):
        check_openness("0.0.0.0", open_mode=True, allow_open=False)
    assert [is_loopback(h) for h in ("::1", "[::1]", "localhost", "127.8.8.8", "10.0.0.1", "example.org", "")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


async def test_requests_over_the_minute_are_refused_with_a_time_to_come_back(
    engine: ScriptedEngine, serve: Serve
) -> None:
    tenant = TenantSettings(id="default", requests_per_minute=3)
    settings = Settings(tenants=(tenant,), engines=(EngineSettings(id="e1", url=engine.url),))
    running = await serve(settings=settings)
    replies = [await running.chat() for _ in range(5)]
    assert [r.status_code for r in replies] == [200, 200, 200, 429, 429]
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
    assert "3 requests per minute" in replies[-1].json()["error"]["message"]


async def test_programs_at_once_and_their_length_are_bounded(engine: ScriptedEngine, serve: Serve) -> None:
    tenant = TenantSettings(id="default", programs_max=2, program_steps_max=2)
    settings = Settings(tenants=(tenant,), engines=(EngineSettings(id="e1", url=engine.url),))
    running = await serve(settings=settings)

    async def step(program: str) -> int:
        reply = await running.client.post(
            f"/p/{program}/v1/chat/completions", json={"model": "m", "messages": []}
        )
        return reply.status_code

    assert [await step(p) for p in ("a", "b", "c", "a", "a")] == [200, 200, 429, 200, 403]
    await running.client.delete("/v1/programs/a")
    assert [await step(p) for p in ("c", "a")] == [200, 429]


async def test_a_tenants_priority_has_a_ceiling(engine: ScriptedEngine, serve: Serve) -> None:
    tenant = TenantSettings(id="default", priority_max="standard")
    settings = Settings(tenants=(tenant,), engines=(EngineSettings(id="e1", url=engine.url),))
    running = await serve(settings=settings)
    for asked, got in (("interactive", "standard"), ("batch", "batch")):
        await running.client.post(
            f"/p/{asked}/v1/chat/completions",
            json={"model": "m", "messages": []},
            headers={"x-agentserve-priority": asked},
        )
        assert (await running.client.get(f"/v1/programs/{asked}")).json()["priority"] == got


async def test_a_tenant_with_a_salt_has_it_handed_to_its_engine(engine: ScriptedEngine, serve: Serve) -> None:
    settings = Settings(
        tenants=(TenantSettings(id="default", cache_salt=True),),
        engines=(EngineSettings(id="e1", url=engine.url),),
    )
    running = await serve(settings=settings)
    await running.chat()
    assert running.adapter.prepared[-1].cache_salt


async def test_a_step_that_is_refused_leaves_no_trace_in_the_scheduler(
    engine: ScriptedEngine, serve: Serve
) -> None:
    settings = Settings(
        tenants=(TenantSettings(id="default", programs_max=1),),
        engines=(EngineSettings(id="e1", url=engine.url),),
    )
    running = await serve(settings=settings)
    engine.script.append(raw(hang=True))
    first = asyncio.create_task(
        running.client.post("/p/a/v1/chat/completions", json={"model": "m", "messages": []})
    )
    await until(lambda: engine.asked)
    refused = await running.client.post("/p/b/v1/chat/completions", json={"model": "m", "messages": []})
    assert refused.status_code == 429
    first.cancel()
    await running.quiet()
    assert len(running.books.told(ev.StepArrived)) == 1


# -- counting


def test_a_tenant_without_limits_costs_no_record() -> None:
    quotas = Quotas()
    for i in range(100):
        quotas.request("t", float(i))
        quotas.step("t", f"p{i}", 10**9, float(i))
    assert not quotas._accounts


def test_tokens_that_were_not_known_beforehand_are_paid_back_before_more_is_let_in() -> None:
    quotas = Quotas([TenantSettings(id="t", tokens_per_minute=1000)])
    quotas.step("t", "p", 100, 0.0)
    quotas.step_over("t", "p", 3000, 1.0)
    with pytest.raises(Overloaded) as refused:
        quotas.step("t", "p", 100, 1.0)
    assert refused.value.retry_after_s == pytest.approx(126.0, abs=1.0)
    quotas.step("t", "p", 100, 128.0)


def test_an_idle_program_gives_its_place_up_and_a_running_one_does_not() -> None:
    quotas = Quotas([TenantSettings(id="t", programs_max=1)], program_idle_s=60.0)
    quotas.step("t", "a", 1, 0.0)
    with pytest.raises(Overloaded):
        quotas.step("t", "b", 1, 1000.0)
    quotas.step_over("t", "a", 1, 1000.0)
    with pytest.raises(Overloaded):
        quotas.step("t", "b", 1, 1059.0)
    quotas.step("t", "b", 1, 1061.0)


def test_a_program_stays_counted_until_its_last_step_is_over() -> None:
    quotas = Quotas([TenantSettings(id="t", programs_max=1)], program_idle_s=60.0)
    quotas.step("t", "a", 1, 0.0)
    quotas.step("t", "a", 1, 0.0)
    quotas.step_over("t", "a", 1, 0.0)
    with pytest.raises(Overloaded):
        quotas.step("t", "b", 1, 1000.0)
    quotas.step_over("t", "a", 1, 1000.0)
    quotas.step("t", "b", 1, 1061.0)


def test_the_place_that_is_given_up_is_that_of_the_program_idle_for_longest() -> None:
    quotas = Quotas([TenantSettings(id="t", programs_max=2)], program_idle_s=60.0)
    for program, at in (("a", 0.0), ("b", 10.0), ("a", 50.0)):
        quotas.step("t", program, 1, at)
        quotas.step_over("t", program, 1, at)
    quotas.step("t", "c", 1, 75.0)  # in place of b
    with pytest.raises(Overloaded) as refused:
        quotas.step("t", "b", 1, 80.0)
    assert refused.value.retry_after_s == pytest.approx(30.0), "until a, seen at 50, is idle too long"


def test_a_program_begun_anew_under_its_old_name_is_not_held_up_by_what_ran_before() -> None:
    quotas = Quotas([TenantSettings(id="t", programs_max=1, program_steps_max=1)], program_idle_s=60.0)
    quotas.step("t", "a", 1, 0.0)
    quotas.program_over("t", "a")
    quotas.step("t", "a", 1, 1.0)
    quotas.step_over("t", "a", 1, 2.0)  # of the first
    quotas.step_over("t", "a", 1, 2.0)
    quotas.step("t", "b", 1, 100.0)


def test_limits_that_are_set_anew_count_from_then_on() -> None:
    quotas = Quotas([TenantSettings(id="t", programs_max=1)])
    quotas.step("t", "a", 1, 0.0)
    quotas.set(TenantSettings(id="t", programs_max=2))
    quotas.step("t", "b", 1, 1.0)
    quotas.step("t", "c", 1, 1.0)
    with pytest.raises(Overloaded):
        quotas.step("t", "d", 1, 1.0)


def test_a_program_that_used_its_tokens_is_refused_for_good() -> None:
    quotas = Quotas([TenantSettings(id="t", program_tokens_max=100)])
    quotas.step("t", "a", 1, 0.0)
    quotas.step_over("t", "a", 100, 0.0)
    with pytest.raises(NotAuthorised, match="100 tokens"):
        quotas.step("t", "a", 1, 1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 50)), max_size=60))
def test_a_bucket_never_gives_more_than_its_limit_and_what_it_began_with(
    takes: list[tuple[float, float]],
) -> None:
    bucket, now, taken = Bucket(60.0, 0.0), 0.0, 0.0
    for pause, amount in takes:
        now += pause
        if bucket.wait_s(amount, now) == 0.0:
            bucket.take(amount, now)
            taken += amount
    assert taken <= 60.0 + now + 1e-6


def test_scopes_have_their_names() -> None:
    assert {CALL, ADMIN} <= {"call", "admin"}
