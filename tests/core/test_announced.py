"""Announced tool calls sharpen what is learned from the traffic, and never blunt it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentserve.core import events as ev
from agentserve.core.ids import ProgramId, StepId, TenantId
from agentserve.core.learned import Learned

P = ProgramId("p")
PYTEST = ev.PendingTool(id="c1", name="bash", argument_class="pytest")
BARE = ev.PendingTool(id="c1", name="bash")  # as the SDK tells of it: it sees no arguments


def median_after(desk: Any, told: list[ev.AnyEvent]) -> float:
    """What is forecast for `bash pytest` after gaps of 60 s, in which this was told."""
    learned = Learned()
    d = desk(foresight=learned)
    for step in range(12):
        d.arrive("p", step, after=0.0 if step == 0 else 60.0)
        d.finish("p", step, after=0.5, tools=(PYTEST,))
        for event in told:
            d.tell(event)
    survival = learned.returns.predict(tenant="t", program=None, calls=(PYTEST,))
    return float(survival.quantile(0.5))


def test_a_call_that_is_announced_is_still_learned_as_the_model_asked_for_it(desk: Any) -> None:
    silent = median_after(desk, [])
    started = ev.ToolStarted(program=P, tool=BARE)
    ended = ev.ToolEnded(program=P, tool_id="c1", duration_s=59.0)
    assert silent > 20.0
    assert median_after(desk, [started]) == pytest.approx(silent)
    assert median_after(desk, [started, ended]) == pytest.approx(silent)


def test_an_announced_call_of_the_application_is_not_a_second_one(desk: Any) -> None:
    d = desk()
    d.arrive("p")
    d.finish("p", tools=(PYTEST,))
    d.tell(ev.ToolStarted(program=P, tool=ev.PendingTool(id="sdk-1", name="bash")))
    assert set(d.board.programs["p"].calls) == {"c1"}
    d.tell(ev.ToolStarted(program=P, tool=ev.PendingTool(id="sdk-2", name="search")))
    assert set(d.board.programs["p"].calls) == {"c1", "sdk-2"}


READ = ev.PendingTool(id="r1", name="read")


def returning(desk: Any, *, measured: tuple[tuple[str, float], ...]) -> Learned:
    """`read` and `bash`, each alone for 2 s, then both in gaps of 60 s, and what was measured of them."""
    learned = Learned()
    d = desk(foresight=learned)
    gaps = [(2.0, (READ,)), (2.0, (PYTEST,))] * 20 + [(60.0, (READ, PYTEST))] * 40
    d.arrive("p")
    for step, (gap_s, calls) in enumerate(gaps):
        d.finish("p", step, after=0.5, tools=calls)
        returned = tuple(call.id for call in calls)
        told = measured if len(calls) > 1 else ()
        d.arrive("p", step + 1, after=gap_s, returned=returned, measured=told)
    return learned


def median_beside(learned: Learned, call: ev.PendingTool) -> float:
    """Of the call beside the other one."""
    at = (READ, PYTEST).index(call)
    return float(
        learned.returns.gaps.predict_one(tenant="t", program=None, call=call, group=(at, 2)).quantile(0.5)
    )


@pytest.mark.parametrize("slow", ["bash", "read"])
def test_of_parallel_calls_a_gap_teaches_about_the_one_that_the_client_measured_longest(
    desk: Any, slow: str
) -> None:
    seconds = {"bash": 0.2, "read": 0.1} | {slow: 59.0}
    learned = returning(desk, measured=tuple(seconds.items()))
    slower, faster = (PYTEST, READ) if slow == "bash" else (READ, PYTEST)
    assert median_beside(learned, slower) > 30.0
    assert median_beside(learned, faster) < 10.0


def test_each_measure_is_of_one_call_of_its_name_and_others_are_left_out() -> None:
    calls = {
        call: ev.PendingTool(id=call, name=name)
        for call, name in [("a", "bash"), ("b", "read"), ("c", "bash")]
    }
    arrived = ev.StepArrived(
        step=StepId("s"), program=P, tenant=TenantId("t"), prompt_tokens=1,
        measured=(("bash", 1.0), ("nobody", 9.0), ("bash", 2.0), ("bash", 3.0)),
    )  # fmt: skip
    assert arrived.took(calls) == {"a": 1.0, "c": 2.0}
    quicker = msgspec.structs.replace(
        arrived, returned=("c", "a")
    )  # the second was over first, and is told first
    assert quicker.took(calls) == {"c": 1.0, "a": 2.0}
