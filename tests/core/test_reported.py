"""What the scheduler makes of what it is told beside steps: declarations, tools, KV events, the fate of decisions; and
when it asks to be woken."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits
from agentserve.core.foresight import Known
from agentserve.core.ids import EngineId, ProgramId, TenantId, WorkflowId
from agentserve.core.program import Program
from agentserve.errors import InvariantBroken
from tests.core.conftest import Gaps

A = ProgramId("a")


def others_wrote_since(desk: Any) -> tuple[Any, Program, float]:
    """Two engines; a program that left its KV on e0, where others wrote since; and what the clock said when it left."""
    d = desk("affinity", engines=2)
    d.arrive("a")
    d.finish("a")
    program = d.board.programs[A]
    left_at = program.home_clock
    d.board.fleet[EngineId("e0")].written += 500
    return d, program, left_at


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
    d, program, left_at = others_wrote_since(desk)
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
    d, program, left_at = others_wrote_since(desk)
    d.tell(ev.DecisionDone(decision=decision, program=A, engine=EngineId(engine), outcome=outcome))
    assert (program.home_clock > left_at) is younger


def test_a_program_that_is_declared_again_was_heard_of(desk: Any) -> None:
    d = desk(limits=Limits(program_idle_s=60.0))
    for after in (0.0, 50.0, 50.0):
        d.tell(ev.ProgramDeclared(program=A, tenant=TenantId("t")), after=after)
    d.tell(ev.TimerFired(), after=1.0)
    assert A in d.board.programs
    d.tell(ev.TimerFired(), after=60.0)
    assert A not in d.board.programs


def test_a_sub_agent_is_as_important_and_as_urgent_as_its_parent_unless_it_says_otherwise(desk: Any) -> None:
    d = desk()
    d.arrive("lead", priority="batch", deadline_s=40.0)
    d.arrive("helper", parent="lead", after=5.0)
    d.arrive("hurried", parent="lead", priority="interactive", deadline_s=10.0)
    d.arrive("orphan", parent="nobody")
    said = {name: (p.priority, p.deadline_at) for name, p in d.board.programs.items()}
    assert said["helper"] == ("batch", 40.0)
    assert said["hurried"] == ("interactive", 15.0)
    assert said["orphan"] == ("standard", None)


def test_who_runs_for_long_is_heard_of_and_holds_up_nobody_who_is_idle(desk: Any) -> None:
    d = desk(limits=Limits(program_idle_s=60.0))
    d.arrive("runs")
    for name, after in (("idle", 0.0), ("late", 48.0)):
        d.arrive(name, after=after)
        d.finish(name)
    out_of = d.board.programs
    d.tell(ev.TimerFired(), after=12.0)  # 62 s
    assert list(out_of) == ["late", "runs"], "who is idle too long is over; who runs was just heard of"
    assert d.scheduler.next_deadline() > d.now
    d.finish("runs")
    assert not out_of[ProgramId("runs")].ended


def test_a_program_that_is_in_no_gap_has_no_forecast_of_one(desk: Any) -> None:
    d = desk()
    d.arrive("a")
    assert d.board.gap(d.board.programs[A]) is None


def test_a_step_that_was_sent_cannot_be_sent_again(desk: Any) -> None:
    d = desk()
    d.arrive("a")
    (step,) = d.board.steps.values()
    with pytest.raises(InvariantBroken, match="cannot be dispatched"):
        d.board.dispatch(step, d.board.fleet[EngineId("e0")], d.now, "again")


def test_what_a_policy_draws_by_lot_is_the_same_with_the_same_seed() -> None:
    one, same, other = (Board(foresight=Gaps(), seed=seed).rng.random() for seed in (3, 3, 4))
    assert one == same != other
