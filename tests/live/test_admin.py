"""The admin API."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentserve.core.workflow import StepGraphs, WorkflowGraph
from agentserve.live.auth import ADMIN, READ, SCOPES, Caller, ListedKeys
from tests.live.conftest import ScriptedEngine, Serve, raw, until


async def test_a_key_that_may_read_looks_and_changes_nothing(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(
        engine, keys=ListedKeys.of({"as-r": Caller(tenant="ops", scopes=frozenset({READ}))})
    )
    key = {"x-api-key": "as-r"}
    assert (await running.client.get("/admin/v1/engines", headers=key)).status_code == 200
    assert (await running.client.post("/admin/v1/engines/e1/drain", headers=key)).status_code == 403
    assert (await running.client.delete("/admin/v1/engines/e1", headers=key)).status_code == 403
    assert (await running.client.put("/admin/v1/tenants/x", headers=key, json={})).status_code == 403


async def test_every_path_needs_a_key_with_the_scope_for_it(engine: ScriptedEngine, serve: Serve) -> None:
    keys = ListedKeys.of(
        {"as-c": Caller(tenant="a"), "as-x": Caller(tenant="ops", scopes=frozenset({ADMIN}))}
    )
    running = await serve(engine, keys=keys)
    for path in ("summary", "programs", "steps", "pins", "engines", "tenants", "workflows", "events"):
        assert (await running.client.get(f"/admin/v1/{path}")).status_code == 401
        with_call = await running.client.get(f"/admin/v1/{path}", headers={"authorization": "Bearer as-c"})
        assert with_call.status_code == 403
    summary = await running.client.get("/admin/v1/summary", headers={"x-api-key": "as-x"})
    assert summary.json()["engines_up"] == 1


async def test_a_program_and_the_reasons_of_its_decisions_can_be_read(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    await running.client.post("/p/run-1/v1/chat/completions", json={"model": "m", "messages": []})
    listed = (await running.client.get("/admin/v1/programs")).json()
    assert [program["id"] for program in listed["data"]] == ["run-1"]
    key = listed["data"][0]["key"]
    assert (await running.client.get(f"/admin/v1/programs/{key}")).json()["steps_done"] == 1
    story = (await running.client.get(f"/admin/v1/programs/{key}/decisions")).json()["story"]
    assert story[0]["event"]["type"] == "StepArrived"
    dispatch = story[0]["decisions"][0]
    assert dispatch["type"] == "Dispatch"
    assert dispatch["reason"]
    assert (await running.client.get("/admin/v1/programs/nobody/decisions")).status_code == 404


async def test_a_graph_is_found_by_names_that_hold_slashes(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    graphs = running.gateway.graphs = StepGraphs()
    for tenant, name in (("a/b", "c"), ("a", "b/d")):
        steps = [{"id": f"of {tenant} called {name}"}]
        graphs.declare(tenant, name, WorkflowGraph.parse({"nodes": steps}))
    for path, whose in (
        ("a%2Fb/c", "of a/b called c"),
        ("a/b%2Fd", "of a called b/d"),
        ("a/b/d", "of a called b/d"),
    ):
        drawn = await running.client.get(f"/admin/v1/graphs/{path}")
        assert drawn.status_code == 200, path
        assert whose in drawn.text
    assert (await running.client.get("/admin/v1/graphs/a/b/c")).status_code == 404


async def test_an_open_step_is_listed_with_its_engine(engine: ScriptedEngine, serve: Serve) -> None:
    engine.script.append(raw(hang=True))
    running = await serve(engine)
    asking = asyncio.create_task(running.chat())
    await until(lambda: engine.asked)
    (step,) = (await running.client.get("/admin/v1/steps")).json()["data"]
    assert (step["engine"], step["state"]) == ("e1", "dispatched")
    asking.cancel()
    await running.quiet()
    assert (await running.client.get("/admin/v1/steps")).json()["total"] == 0


async def test_engines_are_added_drained_and_removed_while_it_runs(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    added = await running.client.post("/admin/v1/engines", json={"id": "late", "url": other.url})
    assert added.status_code == 201
    await until(lambda: running.gateway.engines["late"].up)
    assert (await running.client.post("/admin/v1/engines/e1/drain")).json()["state"] == "draining"
    for _ in range(3):
        assert (await running.chat()).headers["x-agentserve-engine"] == "late"
    assert (await running.client.post("/admin/v1/engines/e1/resume")).json()["state"] == "up"
    assert (await running.client.delete("/admin/v1/engines/late")).status_code == 200
    assert (await running.chat()).headers["x-agentserve-engine"] == "e1"
    assert (await running.client.delete("/admin/v1/engines/late")).status_code == 404


async def test_removing_an_engine_sends_its_unanswered_steps_elsewhere(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    engine.otherwise = raw(hang=True)
    running = await serve(engine, other, policy="fifo")
    asking = asyncio.create_task(running.chat())
    await until(lambda: engine.asked)
    await running.client.delete("/admin/v1/engines/e1")
    reply = await asking
    assert (reply.status_code, reply.headers["x-agentserve-engine"]) == (200, "e2")


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"url": "http://x"}, "id"),
        ({"id": "a", "url": "file:///etc/passwd"}, "url"),
        ({"id": "a", "url": "http://x\r\n"}, "url"),
        ({"id": "e1", "url": "http://x"}, "id"),
        ({"id": "a", "url": "http://x", "models": "m"}, "models"),
        ({"id": "a", "url": "http://x", "kv_tokens": 0}, "kv_tokens"),
        ({"id": "a", "url": "http://x", "api_key": "sk-1"}, "api_key"),
    ],
)
async def test_a_wrong_engine_is_refused_by_field(
    said: dict[str, Any], field: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    reply = await running.client.post("/admin/v1/engines", json=said)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


async def test_a_tenants_limits_are_replaced_and_hold_at_once(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    put = await running.client.put("/admin/v1/tenants/default", json={"requests_per_minute": 2, "weight": 3})
    assert put.json()["requests_per_minute"] == 2
    statuses = [(await running.chat()).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    for wrong in ({"weight": 0}, {"requests_per_min": 5}):
        refused = await running.client.put("/admin/v1/tenants/default", json=wrong)
        assert refused.json()["error"]["param"] == next(iter(wrong))
    assert (await running.client.get("/admin/v1/tenants/default")).json() == put.json()


async def test_what_has_a_slash_in_its_name_can_be_changed_and_removed(
    engine: ScriptedEngine, other: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    client = running.client
    await client.post("/admin/v1/engines", json={"id": "rack/1", "url": other.url})
    assert (await client.post("/admin/v1/engines/rack%2F1/drain")).json()["state"] in ("draining", "down")
    assert (await client.get("/admin/v1/engines/rack%2F1")).json()["id"] == "rack/1"
    assert (await client.delete("/admin/v1/engines/rack%2F1")).json() == {"removed": "rack/1"}
    put = await client.put("/admin/v1/tenants/org%2Fteam", json={"weight": 2})
    assert (put.json()["id"], put.json()["weight"]) == ("org/team", 2)


async def test_live_events_are_streamed_as_they_happen(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    async with running.client.stream("GET", "/admin/v1/events?tenant=default") as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith(":")
        await running.chat()
        seen = []
        async for line in lines:
            if line.startswith("data: "):
                seen.append(json.loads(line[6:])["event"]["type"])
            if seen and seen[-1] == "StepFinished":
                break
    assert seen[0] == "StepArrived"


class RevocableKeys:
    """One key that may do everything until it is revoked, and one that may call."""

    def __init__(self) -> None:
        self.revoked = False

    def check(self, token: str, now: float) -> Caller | None:
        if token == "watcher":
            return None if self.revoked else Caller(tenant="ops", scopes=SCOPES)
        return Caller(tenant="acme") if token == "caller" else None


async def test_who_watches_with_a_key_that_is_revoked_sees_no_more(
    engine: ScriptedEngine, serve: Serve
) -> None:
    keys = RevocableKeys()
    running = await serve(engine, keys=keys)
    caller, watcher = ({"authorization": f"Bearer {key}"} for key in ("caller", "watcher"))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    async with running.client.stream("GET", "/admin/v1/events", headers=watcher) as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith(":")
        keys.revoked = True
        asked = await running.client.post("/v1/chat/completions", json=body, headers=caller)
        assert asked.status_code == 200
        assert [line async for line in lines if line.startswith("data: ")] == []
    assert (await running.client.get("/admin/v1/events", headers=watcher)).status_code == 401


async def test_a_list_is_bounded_by_what_was_asked_and_by_a_limit(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    for i in range(3):
        await running.client.post("/v1/programs", json={"id": f"p{i}"})
    listed = (await running.client.get("/admin/v1/programs?limit=2")).json()
    assert (len(listed["data"]), listed["total"]) == (2, 3)
    for wrong in ("0", "-1", "x", "100000"):
        assert (await running.client.get(f"/admin/v1/programs?limit={wrong}")).status_code == 400


async def test_programs_are_listed_by_pages_in_an_order_that_was_asked_for(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    for i in range(7):
        await running.client.post("/v1/programs", json={"id": f"p{i}"})

    async def page(query: str) -> list[str]:
        reply = (await running.client.get(f"/admin/v1/programs?{query}")).json()
        assert (reply["matching"], reply["total"]) == (7, 7)
        return [program["id"] for program in reply["data"]]

    assert await page("order=oldest&limit=3") == ["p0", "p1", "p2"]
    assert await page("order=oldest&limit=3&offset=5") == ["p5", "p6"]
    assert await page("order=recent&limit=2&offset=6") == ["p0"]
    assert await page("offset=100") == []
    found = (await running.client.get("/admin/v1/programs?q=P3&offset=0")).json()
    assert (len(found["data"]), found["matching"], found["total"]) == (1, 1, 7)
    for wrong in ("order=newest", "offset=-1", "offset=x", "offset=99999999999"):
        assert (await running.client.get(f"/admin/v1/programs?{wrong}")).status_code == 400


async def test_a_watcher_that_comes_later_is_told_what_happened_lately(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    await running.chat()
    async with running.client.stream("GET", "/admin/v1/events?after=0") as stream:
        seen: list[dict[str, Any]] = []
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]))
                if seen[-1]["event"]["type"] == "StepFinished":
                    break
    assert seen[0]["decisions"][0]["type"] == "Dispatch"
    assert seen[0]["event"]["streamed"] is False, "the reply came whole"


async def test_a_caller_learns_what_its_key_may_do(engine: ScriptedEngine, serve: Serve) -> None:
    keys = ListedKeys.of({"as-r": Caller(tenant="ops", scopes=frozenset({READ}))})
    running = await serve(engine, keys=keys)
    reply = await running.client.get("/admin/v1/me", headers={"x-api-key": "as-r"})
    assert reply.json() == {"tenant": "ops", "scopes": ["read"]}


async def test_an_engine_shows_what_its_kv_is_for_while_the_first_step_still_runs(
    engine: ScriptedEngine, serve: Serve
) -> None:
    engine.script.append(raw(hang=True))
    running = await serve(engine)
    asking = asyncio.create_task(running.chat())
    await until(lambda: engine.asked)
    (shown,) = (await running.client.get("/admin/v1/engines")).json()["data"]
    assert shown["kv"]["running"] + shown["kv"]["shared"] > 0
    (program,) = (await running.client.get("/admin/v1/programs")).json()["data"]
    assert (program["kv"], program["engine"]) == ("running", "e1")
    assert program["kv_tokens"] > 0
    asking.cancel()
    await running.quiet()
