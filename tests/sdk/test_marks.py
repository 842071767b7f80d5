"""Workflows, steps and tools: what the gateway is told, and what the application notices (nothing)."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator

import agentserve_sdk as agentserve
import pytest
from agentserve_sdk import testing


def test_a_workflow_is_declared_and_ended(gateway: testing.Gateway) -> None:
    @agentserve.workflow(name="report", deadline_s=60, priority="batch", session_id="s1")
    def report() -> str:
        said = agentserve.headers()
        assert said["x-agentserve-workflow"] == "report"
        assert said["x-agentserve-priority"] == "batch"
        assert 59_000 < int(said["x-agentserve-deadline-ms"]) <= 60_000
        return said["x-agentserve-program-id"]

    name = report()
    program = gateway.only_program
    assert program.id == name
    assert program.declared == {
        "id": name, "workflow": "report", "session_id": "s1", "deadline_ms": 60_000, "priority": "batch",
    }  # fmt: skip
    assert program.status == "succeeded"
    assert agentserve.current() is None


def test_a_workflow_that_raises_has_failed_and_the_error_passes(gateway: testing.Gateway) -> None:
    @agentserve.workflow
    def broken() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        broken()
    assert gateway.only_program.status == "failed"
    assert gateway.only_program.declared["workflow"] == "broken"


async def test_a_cancelled_workflow_is_told_as_cancelled(gateway: testing.Gateway) -> None:
    started = asyncio.Event()

    @agentserve.workflow
    async def slow() -> None:
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(slow())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gateway.only_program.status == "cancelled"


def test_the_context_manager_is_the_decorators_twin(gateway: testing.Gateway) -> None:
    with agentserve.workflow("report", id="run-42") as program:
        assert agentserve.current() is program
        assert program.base_url == f"{gateway.url}/p/run-42/v1"
        with agentserve.step("draft"), agentserve.tool("search", call_id="call_7"):
            assert agentserve.headers()["x-agentserve-step"] == "draft"
        assert "x-agentserve-step" not in agentserve.headers()
    told = gateway.only_program
    assert (told.id, told.status) == ("run-42", "succeeded")
    assert [(t.name, t.call_id, t.ended) for t in told.tools] == [("search", "call_7", True)]


def test_a_tool_is_announced_with_its_hints_and_its_failure(gateway: testing.Gateway) -> None:
    @agentserve.tool(expected_s=2.0, timeout_s=9.0, idempotent=True)
    def search(q: str) -> str:
        raise TimeoutError(q)

    with agentserve.workflow("w"), pytest.raises(TimeoutError):
        search("a secret question")
    program = gateway.only_program
    start = next(e for e in program.events if e["type"] == "tool_start")
    assert (start["tool"], start["eta_ms"], start["timeout_ms"]) == ("search", 2_000, 9_000)
    assert program.tools[0].status == "failed"
    assert "secret" not in str(program.events), "no argument ever leaves the process"


def test_the_last_open_tool_says_that_the_program_returns_now(gateway: testing.Gateway) -> None:
    with agentserve.workflow("w"):
        with agentserve.tool("outer"), agentserve.tool("inner"):
            pass
        with agentserve.tool("known", call_id="call_1"):
            pass
    kinds = [e["type"] for e in gateway.only_program.events]
    assert kinds == [
        "tool_start", "tool_start", "tool_end", "tool_end", "next", "tool_start", "tool_end", "end",
    ]  # fmt: skip


def test_a_workflow_inside_of_another_is_its_child(gateway: testing.Gateway) -> None:
    with agentserve.workflow("parent") as parent, agentserve.workflow("child") as child:
        assert agentserve.headers()["x-agentserve-parent-id"] == parent.id
    gateway.settle()
    assert gateway.programs[child.id].declared["parent_id"] == parent.id
    assert "parent_id" not in gateway.programs[parent.id].declared


def test_end_counts_once(gateway: testing.Gateway) -> None:
    with agentserve.workflow("w"):
        agentserve.end("failed")
        agentserve.end()
    program = gateway.only_program
    assert [e["status"] for e in program.events if e["type"] == "end"] == ["failed"]


def test_steps_tell_of_the_graph_once(gateway: testing.Gateway) -> None:
    @agentserve.step("draft", next=["review", "polish"])
    def draft() -> None: ...

    @agentserve.step(next="draft")
    def polish() -> None: ...

    for _ in range(2):
        with agentserve.workflow("essay of a test"):
            draft()
            polish()
    gateway.settle()
    graph = gateway.workflows["essay of a test"]
    assert {n["id"] for n in graph["nodes"]} == {"draft", "review", "polish"}
    assert {(e["source"], e["target"], e["conditional"]) for e in graph["edges"]} == {
        ("draft", "review", True), ("draft", "polish", True), ("polish", "draft", False),
    }  # fmt: skip


def test_hints_reach_the_gateway(gateway: testing.Gateway) -> None:
    with agentserve.workflow("w") as program:
        program.expect(1.5, steps_left=3)
        program.compacted()
    assert gateway.only_program.events[:2] == [
        {"type": "hint", "in_ms": 1500.0, "steps_left": 3}, {"type": "compacted"},
    ]  # fmt: skip


async def test_concurrent_runs_do_not_mix(gateway: testing.Gateway) -> None:
    @agentserve.workflow
    async def run(i: int) -> str:
        seen = agentserve.headers()["x-agentserve-program-id"]
        for _ in range(3):
            await asyncio.sleep(0)
            assert agentserve.headers()["x-agentserve-program-id"] == seen
        return seen

    assert len(set(await asyncio.gather(*(run(i) for i in range(20))))) == 20


def test_threads_carry_the_program_when_bound(gateway: testing.Gateway) -> None:
    def seen() -> str | None:
        program = agentserve.current()
        return None if program is None else program.id

    got: list[str | None] = []
    with agentserve.workflow("w") as program:
        for target in (lambda: got.append(seen()), agentserve.bind(lambda: got.append(seen()))):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        with agentserve.ThreadPoolExecutor(4) as pool:
            got += [pool.submit(seen).result(), *pool.map(lambda _: seen(), range(3))]
        again = agentserve.bind(seen)
        with agentserve.ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: again(), range(50))) == {program.id}
    assert got == [None, *[program.id] * 5]


def test_functions_keep_their_kind_and_signature() -> None:
    @agentserve.tool
    def plain(a: int, *, b: str = "x") -> str:
        """Says b."""
        return b * a

    @agentserve.step
    async def slow() -> int:
        return 1

    @agentserve.workflow
    def values() -> Iterator[int]:
        yield 1

    @agentserve.workflow
    async def later() -> AsyncIterator[int]:
        yield 1

    assert str(inspect.signature(plain)) == "(a: 'int', *, b: 'str' = 'x') -> 'str'"
    assert (plain.__name__, plain.__doc__, plain(2)) == ("plain", "Says b.", "xx")
    assert inspect.iscoroutinefunction(slow)
    assert inspect.isgeneratorfunction(values)
    assert inspect.isasyncgenfunction(later)


def test_methods_can_be_marked(gateway: testing.Gateway) -> None:
    class Agent:
        @agentserve.workflow
        def run(self, x: int) -> int:
            return self.look(x)

        @agentserve.tool
        def look(self, x: int) -> int:
            return x + 1

    assert Agent().run(1) == 2
    assert [t.name for t in gateway.only_program.tools] == ["look"]


def test_nothing_happens_without_init() -> None:
    with agentserve.workflow("w") as program, agentserve.tool("t"):
        assert agentserve.headers() == {}
        program.expect(1.0)
    assert agentserve.stats() == {"sent": 0, "dropped": 0, "failed": 0}


@pytest.mark.parametrize("value", ["ünïcode\nname", "x" * 1_000, ""])
def test_any_name_fits_a_header(gateway: testing.Gateway, value: str) -> None:
    with agentserve.workflow(value, id=value), agentserve.step(value):
        for said in agentserve.headers().values():
            assert said.isascii()
            assert said.isprintable()
            assert 0 < len(said) <= 128
