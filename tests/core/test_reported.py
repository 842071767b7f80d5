"""What the scheduler makes of what it is told beside steps: declarations, tools, KV events, the fate of decisions; and
when it asks to be woken."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Limits
from agentserve.core.foresight import Known
from agentserve.core.ids import EngineId, ProgramId, TenantId, WorkflowId
from tests.core.conftest import Gaps

A = ProgramId("a")


def test_it_asks_to_be_woken_when_who_waits_longest_gives_up(desk: Any) -> None:
    d = desk("affinity", limits=Limits(queue_timeout_s=20.0, program_idle_s=1e6))
    d.lose("e0")
    d.arrive("a", after=3.0)
    d.arrive("b", after=5.0)
    assert d.scheduler.next_deadline() == pytest.approx(23.0)
    assert [x.step for x in d.timer() if isinstance(x, do.Reject)] == ["a/0"]
    assert d.scheduler.next_deadline() == pytest.approx(28.0)


def test_a_declaration_changes_what_it_names_and_nothing_else(desk: Any) -> None:
    d = desk()
    d.now = 10.0
    d.tell(ev.ProgramDeclared(program=A, tenant=TenantId("t"), steps_expected=5.0, workflow=WorkflowId("w")))
    d.tell(ev.ProgramDeclared(program=A, tenant=TenantId("t"), deadline_s=30.0), after=2.0)
    program = d.board.programs[A]
    assert (program.steps_left_told, program.workflow, program.deadline_at) == (5.0, "w", 40.0)
    d.arrive("a")
    d.finish("a")
    d.tell(ev.ProgramDeclared(program=A, tenant=TenantId("t"), steps_expected=4.0))
    assert program.steps_left_told == 3.0, "one of the four is done"


def test_a_gap_is_forecast_anew_once_a_tool_is_said_to_run(desk: Any) -> None:
    d = desk(foresight=Gaps({"a": 5.0}))
    d.arrive("a")
    d.finish("a")
    program = d.board.programs[A]
    before = d.board.gap(program)
    assert d.board.gap(program) is before, "asked once"
    d.tell(ev.ToolStarted(program=A, tool=ev.PendingTool(id="c", name="bash")))
    assert isinstance(d.board.gap(program), Known)
    assert d.board.gap(program) is not before


def test_what_an_engine_stores_of_a_program_is_as_new_as_its_last_use_at_home_alone(desk: Any) -> None:
    d = desk("affinity", engines=2)
    d.arrive("a")
    d.finish("a")
    program, home = d.board.programs[A], d.board.fleet[EngineId("e0")]
    left_at = program.home_clock
    home.written += 500
    d.board.fleet[EngineId("e1")].written += 9_000
    d.tell(ev.KvStored(engine=EngineId("e1"), program=A, tokens=900))
    assert program.home_clock == left_at
    d.tell(ev.KvStored(engine=EngineId("e0"), program=A, tokens=900))
    assert program.home_clock == left_at + 500


@pytest.mark.parametrize(
    ("decision", "engine", "outcome", "younger"),
    [
        ("Warm", "e0", "accepted", True),
        ("Warm", "e1", "accepted", False),
        ("Warm", "e0", "refused", False),
        ("Pin", "e0", "accepted", False),
    ],
)
def test_only_a_warm_that_was_carried_out_at_home_makes_kv_younger(
    desk: Any, decision: str, engine: str, outcome: Any, younger: bool
) -> None:
    d = desk("affinity", engines=2)
    d.arrive("a")
    d.finish("a")
    program, home = d.board.programs[A], d.board.fleet[EngineId("e0")]
    left_at = program.home_clock
    home.written += 500
    d.tell(ev.DecisionDone(decision=decision, program=A, engine=EngineId(engine), outcome=outcome))
    assert (program.home_clock > left_at) is younger
