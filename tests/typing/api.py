"""Never run, only checked, by mypy and pyright: decorated functions keep their types.

Rule: `assert_type` fails the check where a decorator changes a signature, turns async into sync or a generator into
something else; a `type: ignore` that is not needed fails it too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from typing import Any, assert_type

import agentserve_sdk as agentserve


@agentserve.workflow
def bare(topic: str, *, depth: int = 1) -> list[str]:
    return [topic] * depth


@agentserve.workflow(name="report", deadline_s=60, priority="interactive")
async def parameterised(topic: str) -> bytes:
    return topic.encode()


@agentserve.step("draft", next=["review"])
def values(n: int) -> Generator[int, str, bytes]:
    got = yield n
    return got.encode()


@agentserve.tool(expected_s=2.0, idempotent=True)
async def later(n: int) -> AsyncIterator[float]:
    yield n / 2


@agentserve.tool
async def search(q: str) -> dict[str, int]:
    return {q: 1}


class Agent:
    @agentserve.workflow
    def run(self, x: int) -> str:
        return str(x)

    @agentserve.tool("look")
    async def look(self, x: int) -> str:
        return str(x)


async def check(agent: Agent) -> None:
    assert_type(bare("x", depth=2), list[str])
    assert_type(await parameterised("x"), bytes)
    assert_type(values(1), Generator[int, str, bytes])
    assert_type(later(1), AsyncIterator[float])
    async for value in later(1):
        assert_type(value, float)
    assert_type(await search("x"), dict[str, int])
    assert_type(agent.run(1), str)
    assert_type(await agent.look(1), str)
    wanted: Callable[[str], object] = bare
    wanted("x")

    with agentserve.workflow("report", id="run-42") as program:
        assert_type(program, agentserve.Program)
        assert_type(program.base_url, str)
        assert_type(program.headers(), dict[str, str])
    async with agentserve.workflow("report") as program:
        assert_type(program.deadline_in_s, float | None)
    with agentserve.step("draft"), agentserve.tool("search", call_id="call_1"):
        assert_type(agentserve.current(), agentserve.Program | None)
        assert_type(agentserve.headers(final=True), dict[str, str])

    assert_type(agentserve.bind(bare)("x"), list[str])
    with agentserve.ThreadPoolExecutor(2) as pool:
        assert_type(pool.submit(bare, "x"), Future[list[str]])
    admin = agentserve.Admin("http://127.0.0.1:8400")
    assert_type(admin.end_program("t/p"), bool)
    assert_type(admin.programs(order="context", limit=5), list[dict[str, Any]])
    assert_type(admin.events(after=0), Generator[dict[str, Any], None, None])
    assert_type(admin.graph("tenant", "report"), str)


def mistakes(agent: Agent) -> None:
    bare(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare("x", width=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    agent.run("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    agentserve.workflow(deadline="soon")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    agentserve.step("draft", next=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
