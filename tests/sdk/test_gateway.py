"""The SDK and the real gateway understand each other: what is told of a program is what an operator then sees."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agentserve_sdk as agentserve
import httpx
import pytest

from agentserve.cli.gateway import composed
from agentserve.config import EmulatedSettings, Settings, StoreSettings
from agentserve.live.serve import server_for, started

START_S = 20.0


class Threaded:
    """The composed gateway with its embedded engine, in a loop and a thread of its own, as the SDK blocks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ready = threading.Event()
        self._leave = asyncio.Event()
        self.loop = asyncio.new_event_loop()
        self.url = ""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Threaded:
        self._thread.start()
        assert self._ready.wait(START_S)
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(START_S)

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()
            self.loop.close()

    async def _serve(self) -> None:
        async with composed(self._settings) as made:
            server = server_for(made.gateway, port=0)
            task = await started(server)
            self.url = f"http://127.0.0.1:{server.port()}"
            self._ready.set()
            await self._leave.wait()
            server.should_exit = True
            await asyncio.wait([task], timeout=START_S)
            task.result()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    settings = dataclasses.replace(
        Settings(),
        store=StoreSettings(url=f"sqlite+aiosqlite:///{folder}/sdk.db"),
        emulated=EmulatedSettings(time_scale=50.0),
    )
    with Threaded(settings) as gateway:
        yield gateway.url


@pytest.fixture
def admin(real: str) -> agentserve.Admin:
    agentserve.init(real, integrations=False)
    return agentserve.Admin(real)


def ask(url: str, text: str = "hi") -> httpx.Response:
    body = {"model": "emulated", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20.0)


def told() -> None:
    """Everything said has arrived, and none of it was refused."""
    assert agentserve.flush(5.0)
    assert agentserve.stats()["failed"] == agentserve.stats()["dropped"] == 0


def test_a_program_is_known_as_it_was_declared(real: str, admin: agentserve.Admin) -> None:
    @agentserve.tool
    def search() -> None:
        told()
        (open_tool,) = admin.program(key)["tools"]
        assert open_tool["name"] == "search"

    with agentserve.workflow("report", deadline_s=60, priority="batch") as program:
        told()
        key = next(p["key"] for p in admin.programs() if p["id"] == program.id)
        with agentserve.step("draft"):
            reply = ask(real)
        assert reply.headers["x-agentserve-program"] == program.id
        search()
        told()
        seen = admin.program(key)
        assert (seen["workflow"], seen["priority"], seen["steps_done"]) == ("report", "batch", 1)
        assert 0 < seen["deadline_in_s"] <= 60
        assert seen["tools"] == []
        assert seen["returns_in_s"] is not None, "the end of its last tool says that it comes now"
    told()
    assert key not in {p["key"] for p in admin.programs()}, "its end is the end"


def test_a_child_names_its_parent(real: str, admin: agentserve.Admin) -> None:
    with agentserve.workflow("parent") as parent, agentserve.workflow("child") as child:
        ask(real)
        told()
        (seen,) = (p for p in admin.programs() if p["id"] == child.id)
        assert seen["parent_id"] == parent.id


def test_steps_and_their_ways_on_are_a_workflow(real: str, admin: agentserve.Admin) -> None:
    @agentserve.step("plan", next=["write", "look up"])
    def plan() -> None: ...

    with agentserve.workflow("essay for the real gateway"):
        plan()
    told()
    assert "essay for the real gateway" in str(admin.workflows())


def test_any_program_name_reaches_its_events(admin: agentserve.Admin) -> None:
    with agentserve.workflow("w", id="issue b?c#d %41") as program:
        program.expect(2.0, steps_left=4)
        told()
        (seen,) = (p for p in admin.programs() if p["id"] == program.id)
        assert seen["returns_in_s"] == pytest.approx(2.0, abs=1.0)


def test_an_operator_ends_programs_and_drains_engines(real: str, admin: agentserve.Admin) -> None:
    assert admin.summary()["engines_up"] == 1
    (engine,) = admin.engines()
    assert admin.engine(engine["id"])["state"] == "up"
    assert admin.drain_engine(engine["id"])["state"] == "draining"
    assert admin.resume_engine(engine["id"])["state"] == "up"
    agentserve.shutdown()
    ask(real, "a program that nobody declares")
    program = next(p for p in admin.programs() if p["steps_done"] == 1)
    assert admin.decisions(program["key"])
    assert admin.end_program(program["key"])
    assert program["key"] not in {p["key"] for p in admin.programs()}


def test_an_operator_looks_at_everything(real: str, admin: agentserve.Admin) -> None:
    for name in ("seen one", "seen two"):
        with agentserve.workflow("w seen", id=name):
            agentserve.step("draft", next=["review"])(lambda: ask(real))()
            told()
            assert [p["id"] for p in admin.programs(text="SEEN", order="oldest", limit=1)] == [name]
            assert [p["id"] for p in admin.programs(text="seen", state="waiting")] == []
    assert admin.me()["scopes"] == ["admin", "call", "read"]
    assert {"data", "calibration", "gaps"} <= admin.forecasts().keys()
    assert admin.shares()
    assert "w seen" in {g["name"] for g in admin.graphs()}
    assert admin.graph("default", "w seen").startswith("<svg")


def test_events_are_told_as_they_happen_and_again_to_who_comes_back(
    real: str, admin: agentserve.Admin
) -> None:
    events = admin.events(after=0)
    first = next(events)
    reply = ask(real, "somebody watches")
    program = reply.headers["x-agentserve-program"]
    seen = next(e for e in events if e["event"]["type"] == "StepArrived" and program in e["program"])
    events.close()
    again = next(admin.events(tenant="default", after=seen["serial"] - 1))
    assert again["serial"] == seen["serial"] > first["serial"]


def test_every_operation_of_the_admin_api_has_a_method(real: str) -> None:
    asked: set[tuple[str, str]] = set()

    class Written(agentserve.Admin):
        @contextlib.contextmanager
        def _open(self, method: str, path: str, *_: Any, **__: Any) -> Iterator[io.BytesIO]:
            asked.add((method, path if path.startswith("/") else f"/admin/v1/{path}"))
            yield io.BytesIO(b'{"data": [], "story": [], "ended": true}')

    for name, method in inspect.getmembers(Written(real), callable):
        if not name.startswith("_"):
            wanted = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
            made = method(*["x" for p in wanted if p.kind is not p.VAR_KEYWORD])
            list(made) if inspect.isgenerator(made) else None
    paths = httpx.get(f"{real}/openapi.json").json()["paths"]
    there = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/admin/") or path == "/drain"
    }
    patterns = {one: re.compile(re.sub(r"{\w+}", "[^/]+", one[1]) + r"(\?.*)?\Z") for one in there}
    missing = {
        one for one in there if not any(one[0] == m and patterns[one].match(path) for m, path in asked)
    }
    assert not missing


def test_a_tenants_limits_are_set(admin: agentserve.Admin) -> None:
    assert admin.put_tenant("team a", weight=2.0)["weight"] == 2.0
    assert admin.tenant("team a")["weight"] == 2.0
    assert [t["id"] for t in admin.tenants()] == ["team a"]


def test_a_refusal_is_an_error_with_the_gateways_words(admin: agentserve.Admin, stopped: str) -> None:
    from agentserve_sdk.admin import AdminError

    with pytest.raises(AdminError, match="nowhere") as refused:
        admin.engine("nowhere")
    assert refused.value.status == 404
    with pytest.raises(AdminError, match="no answer") as away:
        agentserve.Admin(stopped).summary()
    assert away.value.status == 0


def test_the_admin_client_asks_a_gateway_of_this_machine_past_the_environments_proxy(
    real: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    assert agentserve.Admin(real).summary()
