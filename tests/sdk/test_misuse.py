"""Marks put on wrongly and given wrong values: the agent runs as it would without them, and a word says what it was."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import agentserve_sdk as agentserve
import httpx
import pytest
from agentserve_sdk import testing


class Agent:
    """Marks above what makes a method one of the class."""

    @agentserve.tool
    @classmethod
    def of_class(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x

    @agentserve.tool("named")
    @staticmethod
    def static(x: int) -> int:
        return x

    @agentserve.step  # type: ignore[prop-decorator]  # wrong, and left as it is
    @property
    def model(self) -> str:
        return "m"


def test_class_and_static_methods_are_marked_in_either_order(gateway: testing.Gateway) -> None:
    with agentserve.workflow("w"):
        assert Agent.of_class(1) == Agent().of_class(1) == ("Agent", 1)
        assert Agent.static(2) == Agent().static(2) == 2
    gateway.settle()
    assert [tool.name for tool in gateway.only_program.tools] == ["of_class", "of_class", "named", "named"]


def test_a_name_may_be_a_number_or_a_member_of_an_enumeration(gateway: testing.Gateway) -> None:
    class Stage(enum.Enum):
        DRAFT = "draft"

    names: list[Any] = [7, Stage.DRAFT]
    with agentserve.workflow("w"):
        for name in names:
            with agentserve.tool(name):
                pass
    gateway.settle()
    assert [tool.name for tool in gateway.only_program.tools] == ["7", "Stage.DRAFT"]


def test_what_is_no_function_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Report:
        pass

    assert agentserve.workflow(Report) is Report
    assert agentserve.tool("look")(Report) is Report
    assert Agent().model == "m"
    made = object()  # by a framework's decorator, which the mark stands above
    mark: Any = agentserve.tool
    assert mark(made) is made
    assert "marks functions" in caplog.text


@pytest.mark.parametrize("value", ["soon", float("inf"), float("nan"), 1e300, object()])
def test_a_time_that_is_none_is_not_told_and_raises_nothing(gateway: testing.Gateway, value: Any) -> None:
    with agentserve.workflow("w", deadline_s=value) as program:
        assert "x-agentserve-deadline-ms" not in agentserve.headers()
        program.expect(value, steps_left=value)
        with agentserve.tool("look", expected_s=value, timeout_s=value):
            pass
    gateway.settle()
    assert gateway.only_program.status == "succeeded"
    assert [tool.name for tool in gateway.only_program.tools] == ["look"]
    assert agentserve.stats()["failed"] == 0


def test_a_deadline_that_has_passed_is_now(gateway: testing.Gateway) -> None:
    with agentserve.workflow("w", deadline_s=-3):
        pass
    gateway.settle()
    assert gateway.only_program.declared["deadline_ms"] == 0


def test_a_time_in_words_of_the_environment_counts(gateway: testing.Gateway) -> None:
    given: Any = "60"
    with agentserve.workflow("w", deadline_s=given):
        assert 0 < int(agentserve.headers()["x-agentserve-deadline-ms"]) <= 60_000


def test_no_value_breaks_a_request(gateway: testing.Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> int:
        return httpx.post(f"{gateway.base_url}/chat/completions", json={"model": "m"}).status_code

    with agentserve.workflow("w", priority="high\r\nx-other: 1"):
        assert asked() == 200
    monkeypatch.setenv("AGENTSERVE_PROGRAM_ID", "é\r\nx-other: 1")
    assert asked() == 200
    assert agentserve.headers()["x-agentserve-program-id"].isprintable()


def test_a_refusal_is_said_once_with_the_gateways_words(
    gateway: testing.Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.status = 401
    for _ in range(3):
        with agentserve.workflow("w"):
            pass
        gateway.settle()
    said = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(said) == 1
    assert "401" in said[0].getMessage()


async def test_tasks_that_enter_one_mark_end_their_own_programs(gateway: testing.Gateway) -> None:
    shared = agentserve.workflow("w")
    turn = [asyncio.Event(), asyncio.Event()]

    async def run(n: int) -> None:
        async with shared as program:
            turn[n].set()
            await turn[1].wait()  # both are inside
            if n == 1:
                await first
                gateway.settle()
                assert gateway.programs[program.id].status is None, "the first to leave ended its own"
            assert agentserve.current() is program

    first = asyncio.ensure_future(run(0))
    await turn[0].wait()
    await run(1)
    gateway.settle()
    assert [p.status for p in gateway.programs.values()] == ["succeeded"] * 2


def test_a_client_at_another_name_of_this_host_is_the_same(gateway: testing.Gateway) -> None:
    address = gateway.base_url.replace("127.0.0.1", "localhost")
    with agentserve.workflow("w"):
        httpx.post(f"{address}/chat/completions", json={"model": "m"})
    gateway.settle()
    assert len(gateway.only_program.steps) == 1


FORKS = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
import agentserve_sdk

slow = threading.Event()
class Slow:  # an import that a fork falls into
    def find_spec(self, name, path=None, target=None):
        if name == "http.client":
            slow.set()
            import time; time.sleep(0.2)

sys.meta_path.insert(0, Slow())
agentserve_sdk.init("http://127.0.0.1:9", propagate=False, integrations=False)
agentserve_sdk.workflow("w").open()
slow.wait()
pid = os.fork()
if pid == 0:
    import http.client
    os._exit(0 if hasattr(http.client, "HTTPConnection") else 7)
for _ in range(100):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    slow.clear(); slow.wait(0.1)
os.kill(pid, 9)
sys.exit("the child waits for ever")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_our_thread_imports_leaves_the_child_its_imports() -> None:
    here = Path(agentserve.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", FORKS, here], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
