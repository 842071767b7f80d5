"""What clients say of their programs beside their calls."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from agentserve.core import events as ev
from agentserve.live.auth import Caller, ListedKeys
from agentserve.live.workflows import Workflows
from tests.live.conftest import ScriptedEngine, Serve

GRAPH = {
    "nodes": [
        {"id": "plan", "kind": "llm"},
        {"id": "search", "kind": "tool"},
        {"id": "review", "kind": "llm"},
    ],
    "edges": [{"source": "plan", "target": "search"}, {"source": "search", "target": "review"}],
}


async def test_a_declared_program_is_the_one_that_its_calls_belong_to(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    said = {"id": "run 1", "workflow": "report@3", "priority": "batch", "deadline_ms": 60_000, "unknown": 1}
    declared = await running.client.post("/v1/programs", json=said)
    assert declared.status_code == 201
    answer = declared.json()
    assert answer["base_url"] == f"{running.url}/p/run%201/v1"
    reply = await running.client.post(
        f"{answer['base_url']}/chat/completions", json={"model": "m", "messages": []}
    )
    assert reply.headers["x-agentserve-program"] == "run 1"
    shown = (await running.client.get("/v1/programs/run%201")).json()
    assert (shown["workflow"], shown["priority"], shown["steps_done"]) == ("report@3", "batch", 1)
    assert [step["workflow"] for step in running.books.steps] == ["report@3"]


@pytest.mark.parametrize("name", ["team/nightly run", "a/v1/b", "100%", "x/events", "tür/ü"])
async def test_a_programs_name_may_hold_slashes_and_signs(
    name: str, engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    answer = (await running.client.post("/v1/programs", json={"id": name})).json()
    reply = await running.client.post(
        f"{answer['base_url']}/chat/completions", json={"model": "m", "messages": []}
    )
    assert reply.status_code == 200
    await running.quiet()
    assert [row["program"] for row in running.books.steps] == [f"default/{name}"]
    assert (await running.client.get(f"{answer['base_url']}/models")).status_code == 200
    at = f"/v1/programs/{quote(name, safe='')}"
    told = await running.client.post(f"{at}/events", json=[{"type": "hint", "steps_left": 2}])
    assert told.status_code == 202
    assert [hint.program for hint in running.books.told(ev.HintGiven)] == [f"default/{name}"]
    assert (await running.client.get(at)).json()["id"] == name
    assert (await running.client.delete(at)).json() == {"id": name, "ended": True}


async def test_declaring_twice_is_declaring_once(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    for _ in range(2):
        assert (await running.client.post("/v1/programs", json={"id": "a"})).status_code == 201
    assert len(running.gateway.driver.scheduler.board.programs) == 1


async def test_a_program_without_a_name_gets_one(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    names = {(await running.client.post("/v1/programs")).json()["id"] for _ in range(3)}
    assert len(names) == 3


async def test_tool_events_hints_and_the_end_reach_the_scheduler(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    await running.client.post("/v1/programs", json={"id": "a"})
    batch = [
        {"type": "step_start", "node": "plan"},
        {"type": "tool_start", "tool_call_id": "c1", "tool": "bash", "eta_ms": 4000},
        {"type": "tool_end", "tool_call_id": "c1", "status": "succeeded", "duration_ms": 420},
        {"type": "next", "node": "review", "in_ms": 1500},
        {"type": "compacted"},
        {"type": "from the future"},
        {"type": "end", "status": "succeeded"},
    ]
    reply = await running.client.post("/v1/programs/a/events", json=batch)
    assert (reply.status_code, reply.json()) == (202, {"accepted": 7})
    kinds = [
        type(event).__name__ for event in running.books.events if getattr(event, "program", "") == "default/a"
    ]
    assert kinds == ["ProgramDeclared", "ToolStarted", "ToolEnded", "HintGiven", "HintGiven", "ProgramEnded"]
    (ended,) = running.books.told(ev.ToolEnded)
    assert ended.duration_s == pytest.approx(0.42)
    assert (await running.client.get("/v1/programs/a")).status_code == 404


async def test_events_of_an_unknown_program_declare_it(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    await running.client.post("/v1/programs/b/events", json=[{"type": "next", "in_ms": 10}])
    assert (await running.client.get("/v1/programs/b")).status_code == 200


async def test_ending_a_program_is_told_once_and_may_be_said_again(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    await running.client.post("/v1/programs", json={"id": "a"})
    assert (await running.client.delete("/v1/programs/a")).json() == {"id": "a", "ended": True}
    assert (await running.client.delete("/v1/programs/a")).json() == {"id": "a", "ended": False}


async def test_a_graph_is_registered_once_and_referred_to(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    put = await running.client.put("/v1/workflows/report", json=GRAPH)
    assert put.json() == {"name": "report", "nodes": 3, "edges": 2}
    assert (await running.client.get("/v1/workflows/report")).json() == GRAPH
    await running.client.post("/v1/programs", json={"id": "a", "workflow": "report"})
    (declared,) = running.books.told(ev.ProgramDeclared)
    assert declared.steps_expected == pytest.approx(2.0, abs=1.0)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": "a\nb"}, "id"),
        ({"id": ["a"]}, "id"),
        ({"priority": "urgent"}, "priority"),
        ({"deadline_ms": -1}, "deadline_ms"),
        ({"deadline_ms": "soon"}, "deadline_ms"),
        ({"deadline_ms": 1e15}, "deadline_ms"),
        ({"graph": {"nodes": 3}}, "nodes"),
        ([], "body"),
    ],
)
async def test_a_wrong_field_is_named(said: Any, field: str, engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    reply = await running.client.post("/v1/programs", json=said)
    assert reply.status_code == 400
    assert field in (reply.json()["error"]["param"] or "")


async def test_a_tenant_does_not_see_anothers_program(engine: ScriptedEngine, serve: Serve) -> None:
    keys = ListedKeys.of({"as-a": Caller(tenant="a"), "as-b": Caller(tenant="b")})
    running = await serve(engine, keys=keys)
    await running.client.post("/v1/programs", json={"id": "x"}, headers={"authorization": "Bearer as-a"})
    for path in ("/v1/programs/x", "/v1/programs/a%2Fx"):
        assert (await running.client.get(path, headers={"authorization": "Bearer as-b"})).status_code == 404
    await running.client.delete("/v1/programs/x", headers={"authorization": "Bearer as-b"})
    assert (
        await running.client.get("/v1/programs/x", headers={"authorization": "Bearer as-a"})
    ).status_code == 200


async def test_a_declared_graph_is_journalled_and_can_be_taken_up_again(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    await running.client.put("/v1/workflows/report", json=GRAPH)
    ((_, fact),) = [(kind, row) for kind, row in running.books.facts if kind == "graph"]
    assert (fact["tenant"], fact["name"], fact["graph"]) == ("default", "report", "declared")
    workflows = Workflows(running.books)
    workflows.restore("default", "report", fact["body"], at=fact["at"])
    workflows.restore("default", "broken", b'{"nodes": 3}', at=1.0)
    workflows.restore("default", "old", b'{"nodes": [{"id": "a", "no_longer": "known"}]}', at=1.0)
    assert [declared.name for declared in workflows.of("default")] == ["report", "old"]
    assert workflows["default", "report"].sent == GRAPH
