"""The gateway away, hung or failing: no result changes, nothing raises, nothing waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import agentserve_sdk as agentserve
import pytest
from agentserve_sdk import _post, testing

# the end of a process waits half a second for what was told last; on a busy machine that may be too short
IN_NO_HURRY = "import agentserve_sdk._post as post; post.EXIT_S = 20.0\n"


@agentserve.tool
def double(x: int) -> int:
    return 2 * x


@agentserve.workflow
def agent(n: int) -> list[int]:
    return [double(i) for i in range(n)]


def test_a_stopped_gateway_changes_no_result_and_is_left_alone(stopped: str) -> None:
    agentserve.init(stopped, integrations=False)
    for _ in range(5):
        assert agent(3) == [0, 2, 4]
        assert agentserve.flush(5.0)
    said = agentserve.stats()
    assert said["sent"] == 0
    assert said["failed"] > 0
    assert said["dropped"] > 0, "after a few failures nothing is tried for a while"


def test_a_hung_gateway_changes_no_result_and_holds_a_bounded_queue(hung: str) -> None:
    agentserve.init(hung, integrations=False)
    assert agent(_post.QUEUE_MAX)[-1] == 2 * (_post.QUEUE_MAX - 1)
    assert agentserve.stats()["dropped"] > 0
    assert not agentserve.flush(0.01)


def test_errors_of_the_gateway_change_no_result(gateway: testing.Gateway) -> None:
    gateway.status = 500
    assert agent(3) == [0, 2, 4]
    gateway.settle()
    assert agentserve.stats()["failed"] > 0


def test_a_refusal_does_not_rest_the_others(gateway: testing.Gateway) -> None:
    gateway.status = 403
    for _ in range(5):
        agent(1)
    gateway.settle()
    gateway.status = 200
    agent(1)
    gateway.settle()
    assert agentserve.stats()["sent"] > 0


def test_the_gateway_is_tried_again_after_its_rest() -> None:
    with testing.Gateway(integrations=False) as gateway:
        poster = _post.Poster(gateway.url)
        poster._failures = _post.FAILURES_MAX
        poster._rest_until = time.monotonic() + 0.05
        poster.put("p", {"type": "compacted"})
        assert poster.flush(5.0)
        assert (poster.sent, poster.dropped) == (0, 1)
        time.sleep(0.06)
        poster.put("p", {"type": "compacted"})
        assert poster.flush(5.0)
        assert (poster.sent, poster._failures) == (1, 0)
        poster.close(0.0)


def test_events_arrive_in_order_and_in_batches(gateway: testing.Gateway) -> None:
    with agentserve.workflow("w") as program:
        for i in range(50):
            program.expect(float(i))
    events = gateway.only_program.events
    assert [e["in_ms"] for e in events if e["type"] == "hint"] == [i * 1e3 for i in range(50)]
    assert events[-1]["type"] == "end"


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_disabled_means_off(gateway: testing.Gateway, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_DISABLED", value)
    agentserve.init(gateway.url)
    assert agent(1) == [0]
    with agentserve.workflow("w"):
        assert agentserve.headers() == {}
    assert not gateway.programs


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://host:port"])
def test_a_wrong_address_turns_it_off_and_raises_nothing(url: str) -> None:
    agentserve.init(url)
    assert agent(1) == [0]
    assert agentserve.headers() == {}


def test_what_the_environment_says_is_enough(gateway: testing.Gateway) -> None:
    code = (
        f"{IN_NO_HURRY}import agentserve_sdk as a; a.init(); p = a.current(); assert p.id == 'outer', p\n"
        "with a.workflow('inner', id='inner'): pass\n"
    )
    env = {**os.environ, "AGENTSERVE_URL": gateway.base_url, "AGENTSERVE_PROGRAM_ID": "outer"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=30)
    # told before the process ended, though it lived for a moment only
    assert gateway.programs["inner"].status == "succeeded"
    assert gateway.programs["inner"].declared["parent_id"] == "outer"
    assert "outer" not in gateway.programs, "whoever made it ends it"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_thread_of_its_own(gateway: testing.Gateway) -> None:
    code = (
        f"{IN_NO_HURRY}import os, agentserve_sdk as a; a.init()\n"
        "with a.workflow('before', id='before'): a.flush()\n"
        "pid = os.fork()\n"
        "with a.workflow('w', id='child' if pid == 0 else 'parent'): pass\n"
        "if pid: os.waitpid(pid, 0)\n"
    )
    env = {**os.environ, "AGENTSERVE_URL": gateway.url}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, check=True, timeout=30)
    assert {name: p.status for name, p in gateway.programs.items()} == dict.fromkeys(
        ("before", "child", "parent"), "succeeded"
    )


def test_a_broken_sdk_changes_no_result(gateway: testing.Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("agentserve_sdk._client.tell", breaks)
    monkeypatch.setattr("agentserve_sdk._client.send", breaks)
    checks: list[Callable[[], object]] = [lambda: agent(2), lambda: agentserve.end()]
    assert [check() for check in checks] == [[0, 2], None]
