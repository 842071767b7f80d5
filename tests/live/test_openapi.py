"""The API document is true: what it names is there, and what it describes is never answered by a failure of ours."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentserve.live.api_answers import ANSWERS
from agentserve.live.api_schemas import BODIES
from agentserve.ports import ProgramSummary
from tests.live.conftest import ScriptedEngine, Serve

ANY: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


async def test_every_path_of_the_document_is_served(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    api = (await running.client.get("/openapi.json")).json()
    assert api["openapi"].startswith("3.1")
    assert {"/v1/chat/completions", "/p/{program}/v1/messages", "/admin/v1/events"} <= set(api["paths"])
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            if path == "/admin/v1/events" or (method, path) == ("post", "/drain"):
                continue
            url = path.replace("{", "").replace("}", "")
            reply = await running.client.request(
                method, url, json={"model": "m"} if method in ("post", "put") else None
            )
            assert reply.status_code < 500, (method, path, reply.text)
            assert not (reply.status_code == 404 and "nothing is served" in reply.text), (method, path)
            assert reply.status_code != 405, (method, path)


async def test_every_described_body_and_answer_belongs_to_a_path(
    engine: ScriptedEngine, serve: Serve
) -> None:
    running = await serve(engine)
    api = (await running.client.get("/openapi.json")).json()
    for method, path in BODIES:
        assert "requestBody" in api["paths"][path][method]
    for method, path in ANSWERS:
        assert method in api["paths"][path], path


def test_a_programs_summary_is_described_as_it_is_answered() -> None:
    _, described = ANSWERS["get", "/v1/summaries/{program}"]
    answered = {field.encode_name for field in msgspec.structs.fields(ProgramSummary)}
    assert set(described["required"]) == answered


async def test_people_get_a_page(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    page = await running.client.get("/docs")
    assert "/admin/v1/engines" in page.text
    assert "<script" not in page.text


def fields_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Bodies with the right names and anything for values."""
    if schema["type"] == "array":
        return st.lists(fields_of(schema["items"]), max_size=3)
    return st.fixed_dictionaries({}, optional=dict.fromkeys(schema.get("properties", {}), ANY))


async def test_no_body_makes_the_gateway_fail(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    app = httpx.ASGITransport(app=running.gateway)
    bodies = [
        (method, path.replace("{", "").replace("}", ""), fields_of(schema) | ANY)
        for (method, path), schema in BODIES.items()
    ]
    cases: list[tuple[str, str, Any]] = []

    @settings(
        max_examples=150,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.sampled_from(bodies).flatmap(lambda b: st.tuples(st.just(b[0]), st.just(b[1]), b[2])))
    def collect(case: tuple[str, str, Any]) -> None:
        cases.append(case)

    collect()
    async with httpx.AsyncClient(transport=app, base_url="http://test") as client:
        for method, path, body in cases:
            reply = await client.request(method, path, content=json.dumps(body).encode())
            assert reply.status_code < 500, (method, path, body, reply.text)


async def test_no_call_makes_the_gateway_fail(engine: ScriptedEngine, serve: Serve) -> None:
    running = await serve(engine)
    app = httpx.ASGITransport(app=running.gateway)
    names = ("messages", "input", "prompt", "tools", "system", "stream", "stream_options", "metadata", "user", "n",
             "previous_response_id", "conversation", "background", "store", "max_tokens", "agentserve", "nvext",
             "service_tier", "vllm_xargs", "instructions", "text", "reasoning", "tool_choice")  # fmt: skip
    calls: list[tuple[str, dict[str, Any]]] = []
    paths = ["chat/completions", "completions", "responses", "messages", "embeddings"]

    @settings(
        max_examples=120,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(
        st.sampled_from(paths),
        st.fixed_dictionaries({"model": st.just("m") | ANY}, optional=dict.fromkeys(names, ANY)),
    )
    def collect(path: str, body: dict[str, Any]) -> None:
        calls.append((path, body))

    collect()
    async with httpx.AsyncClient(transport=app, base_url="http://test") as client:
        for path, body in calls:
            reply = await client.post(f"/v1/{path}", content=json.dumps(body).encode())
            assert reply.status_code < 500, (path, body, reply.text)
    await running.quiet()
