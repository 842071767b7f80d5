"""Schemathesis on the API document, in process, in front of the emulated engine: no 500, no hang, nothing undescribed.

Every answer must have a status and a body that the document describes. Examples are few and always the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from agentserve_adapters.emulated import EmulatedAdapter
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok

from agentserve.config import EngineSettings, Settings
from agentserve.core.board import Board
from agentserve.core.foresight import Naive
from agentserve.core.identity import Resolver
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler
from agentserve.live.app import Gateway, running
from agentserve.live.auth import OpenKeys
from agentserve.live.driver import Driver
from agentserve.live.engines import Engines
from tests.live.conftest import Books

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its own dependencies warn of at import is not ours to judge
    import schemathesis
    from schemathesis import checks
    from schemathesis.generation import GenerationMode

checks.load_all_checks()
CHECKS = checks.CHECKS.get_by_names(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)
ANSWER_S = 60.0  # far beyond what any answer takes: to tell a hang from a slow machine
EXAMPLES = int(os.environ.get("AGENTSERVE_EXAMPLES", "4"))  # of each operation
ENDLESS = {"/admin/v1/events"}  # a stream without an end; tests of the admin API read it
FINAL = {"/drain"}  # nothing is answered after it
# Engines are only ever sought on this machine's discard port, whatever address was made up for them.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """The whole application with an engine in its own process."""
    engine = EngineSettings(id="e1", url="", kind="emulated", extra={"time_scale": 1000.0})
    settings = Settings(engines=(engine,))
    board = Board(foresight=Naive())
    books = Books()
    driver = Driver(
        Scheduler(board, make_policy("agentserve", board)), journal=books, telemetry=books, check=True
    )
    made = Gateway(
        settings=settings,
        driver=driver,
        resolver=Resolver(),
        engines=Engines(EmulatedAdapter, settings.limits),
        journal=books,
        telemetry=books,
        keys=OpenKeys(),
    )
    async with running(made):
        yield made


def cases_of(operation: Any, mode: Any, known: dict[str, str]) -> list[Any]:
    """A few cases for one operation, the same ones every time; none where nothing about it could be wrong."""
    found: list[Any] = []
    named = {name: known[name] for name in known if f"{{{name}}}" in operation.path}

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode, path_parameters=named or None))
    def collect(case: Any) -> None:
        found.append(case)

    with contextlib.suppress(Unsatisfiable):
        collect()
    return found


async def names(client: httpx.AsyncClient) -> dict[str, str]:
    """What is there to be asked for: one of each kind."""
    call = {"model": "emulated", "max_output_tokens": 4}
    conversation = (
        await client.post("/v1/conversations", json={"items": [{"role": "user", "content": "hi"}]})
    ).json()
    response = (await client.post("/p/known/v1/responses", json={**call, "input": "hello"})).json()
    await client.put("/v1/workflows/known", json={"steps": ["plan", "write"]})
    at = f"/v1/conversations/{conversation['id']}"
    return {
        "program": "known",
        "key": "default/known",
        "engine": "e1",
        "tenant": "default",
        "model": "emulated",
        "name": "known",
        "conversation": conversation["id"],
        "item": (await client.get(f"{at}/items")).json()["data"][0]["id"],
        "response": response["id"],
    }


KINDS = {
    "valid requests": (GenerationMode.POSITIVE, False),
    "valid requests for what is there": (GenerationMode.POSITIVE, True),
    "invalid requests": (GenerationMode.NEGATIVE, False),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_answer_is_as_the_document_says(kind: str, gateway: Gateway) -> None:
    mode, is_there = KINDS[kind]
    transport = httpx.ASGITransport(app=gateway)
    succeeded: set[str] = set()
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        api = (await client.get("/openapi.json")).json()
        known = await names(client) if is_there else {}
        for result in schemathesis.openapi.from_dict(api).get_all_operations():
            assert isinstance(result, Ok)
            operation: Any = result.ok()
            if operation.path in ENDLESS | FINAL or (is_there and operation.method == "delete"):
                continue
            for case in await asyncio.to_thread(cases_of, operation, mode, known):
                if isinstance(case.body, dict):
                    if "url" in case.body:
                        case.body["url"] = NOWHERE
                    if is_there and "model" in case.body:
                        case.body["model"] = known["model"]
                sent = case.as_transport_kwargs(base_url="http://gateway")
                sent.pop("cookies", None)
                if isinstance(sent.get("data"), (bytes, str)):  # as `requests` calls it, and httpx does not
                    sent["content"] = sent.pop("data")
                async with asyncio.timeout(ANSWER_S):
                    reply = await client.send(client.build_request(**sent))
                assert reply.status_code != 500, (case.as_curl_command(), reply.text)
                case.validate_response(reply, checks=CHECKS)
                if reply.is_success:
                    succeeded.add(operation.label)
    if is_there:
        assert {
            "GET /admin/v1/engines/{engine}",
            "GET /v1/responses/{response}",
            "POST /v1/responses",
        } <= succeeded
        assert len(succeeded) > 35
