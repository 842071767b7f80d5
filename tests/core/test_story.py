"""What became of things, told from events and decisions alone."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core import facts
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId
from agentserve.core.story import Story

Fact = TypeVar("Fact")

A, P, E0, E1 = StepId("a"), ProgramId("p"), EngineId("e0"), EngineId("e1")


class Teller:
    """A story with a clock, and the facts it has told."""

    def __init__(self, **given: Any) -> None:
        self.story = Story(**given)
        self.now = 100.0
        self.facts: list[facts.AnyFact] = []

    def tell(self, event: ev.AnyEvent, *decisions: do.AnyDecision, after: float = 0.0) -> None:
        self.now += after
        self.facts += self.story.tell(event, self.now, decisions)

    def arrive(
        self, step: str, *, after: float = 0.0, engine: str = "e0", reason: str = "free", **given: Any
    ) -> None:
        given = {"program": "p", "tenant": "t", "prompt_tokens": 1000, **given}
        event = ev.StepArrived(step=StepId(step), **given)
        self.tell(event, do.Dispatch(step=event.step, engine=EngineId(engine), reason=reason), after=after)

    def finish(
        self,
        step: str,
        *decisions: do.AnyDecision,
        after: float = 2.0,
        tools: tuple[str, ...] = (),
        **given: Any,
    ) -> None:
        given = {"prompt_tokens": 1000, "output_tokens": 100, "cached_tokens": 0, **given}
        out = tuple(ev.PendingTool(id=name, name=name) for name in tools)
        self.tell(ev.StepFinished(step=StepId(step), tools=out, **given), *decisions, after=after)

    def of(self, kind: type[Fact]) -> list[Fact]:
        return [fact for fact in self.facts if isinstance(fact, kind)]

    @property
    def tools(self) -> list[facts.ToolCallOver]:
        return self.of(facts.ToolCallOver)

    @property
    def pins(self) -> list[facts.PinOver]:
        return self.of(facts.PinOver)

    @property
    def closed(self) -> facts.ProgramClosed:
        [fact] = self.of(facts.ProgramClosed)
        return fact


def pin(until: float = 1e9, engine: str = "e0") -> do.Pin:
    return do.Pin(program=P, engine=EngineId(engine), tokens=1100, until=until, reason="worth")


def test_a_programs_time_leaves_out_people_and_its_slowdown_is_its_queueing() -> None:
    teller = Teller()
    teller.tell(ev.StepArrived(step=A, program=P, tenant=TenantId("t"), prompt_tokens=10, relation="new"))
    teller.tell(ev.TimerFired(), do.Dispatch(step=A, engine=E0), after=3.0)  # queued for 3 s
    teller.finish("a", after=2.0, turn_done=True)
    teller.arrive("b", after=500.0, human=True)
    teller.finish("b", after=4.0, final=True)
    closed = teller.closed
    assert (closed.reason, closed.steps) == ("final", 2)
    assert (closed.seconds, closed.queue_s, closed.human_s) == (9.0, 3.0, 500.0)
    assert closed.slowdown == 9.0 / 6.0


@pytest.mark.parametrize("last", ["finished", "failed", "gone"])
def test_a_program_that_is_told_over_while_its_steps_run_is_over_with_the_last_of_them(last: str) -> None:
    story = Teller()
    story.arrive("a")
    story.arrive("b")
    story.tell(ev.ProgramEnded(program=P, reason="told"))
    story.finish("b")
    assert not story.of(facts.ProgramClosed)
    if last == "finished":
        story.finish("a")
    elif last == "failed":
        story.tell(ev.StepFailed(step=A, reason="broke"))
    else:
        story.tell(ev.ClientGone(step=A))
    assert story.closed.reason == "told"
    assert story.story.live == 0


def test_parallel_tool_calls_each_end_when_their_results_come_back() -> None:
    teller = Teller()
    teller.arrive("a", relation="new")
    teller.finish("a", tools=("ls", "grep", "agent"))
    teller.arrive("b", after=5.0, returned=("ls", "grep"))
    assert [(t.name, t.seconds, t.measured, t.censored, t.beside) for t in teller.tools] == [
        ("ls", 5.0, False, False, 2),
        ("grep", 5.0, False, False, 2),
    ]
    teller.finish("b")
    teller.arrive("c", after=8.0, returned=("agent",))  # an asynchronous one, over later
    assert teller.tools[-1].name == "agent"
    assert teller.tools[-1].seconds == 15.0


def test_what_the_client_measured_wins_over_the_gap() -> None:
    teller = Teller()
    teller.arrive("a", relation="new")
    teller.finish("a", tools=("ls",))
    teller.tell(ev.ToolEnded(program=P, tool_id="ls", duration_s=0.25, ok=False), after=3.0)
    teller.arrive("b", after=1.0, returned=("ls",))
    [tool] = teller.tools
    assert (tool.seconds, tool.measured, tool.ok, tool.started_at) == (0.25, True, False, teller.now - 1.25)


def test_a_call_that_nobody_answered_took_at_least_so_long() -> None:
    teller = Teller()
    teller.arrive("a", relation="new")
    teller.finish("a", tools=("ls",))
    teller.arrive("b", after=9.0, human=True)
    [tool] = teller.tools
    assert (tool.censored, tool.seconds) == (True, 9.0)


def test_a_pin_is_hit_when_the_program_comes_back_to_its_engine() -> None:
    teller = Teller()
    teller.tell(ev.EngineReported(engine=E0, prefill_tokens_per_s=1100.0))
    teller.arrive("a", relation="new")
    teller.finish("a", pin())
    teller.arrive("b", after=7.0, reason="kept")
    [over] = teller.pins
    assert (over.end, over.held_s, over.announced) == ("hit", 7.0, True)


@pytest.mark.parametrize(("cached", "saved_s"), [(550, 0.5), (4400, 1.0), (0, None), (None, None)])
def test_a_hit_pin_spared_what_the_engine_says_that_it_found_and_no_more_than_it_kept(
    cached: int | None, saved_s: float | None
) -> None:
    teller = Teller(prefill=lambda engine: 1100.0 if engine == "e0" else None)
    teller.arrive("a", relation="new")
    teller.finish("a", pin())
    teller.arrive("b", after=7.0, reason="kept", prompt_tokens=5000)
    assert not teller.of(facts.PinPaid), "nobody knows yet"
    teller.finish("b", prompt_tokens=5000, cached_tokens=cached)
    [hit] = teller.pins
    assert [fact.over for fact in teller.of(facts.PinPaid)] == (
        [] if saved_s is None else [msgspec.structs.replace(hit, saved_s=saved_s)]
    )
    assert teller.of(facts.StepOver)[-1].saved_s == (cached or 0) / 1100.0


def wait(teller: Teller, step: str, **given: Any) -> None:
    """One that finds no room."""
    arrived = ev.StepArrived(step=StepId(step), program=P, tenant=TenantId("t"), prompt_tokens=10, **given)
    teller.tell(arrived, do.Wait(step=StepId(step)))


def send(teller: Teller, step: str, after: float) -> None:
    teller.tell(ev.TimerFired(), do.Dispatch(step=StepId(step), engine=E0), after=after)


def test_waits_of_steps_beside_one_another_delay_a_program_once() -> None:
    teller = Teller()
    for step in "abc":
        wait(teller, step, relation="new")
    send(teller, "a", 10.0)
    send(teller, "b", 0.0)
    teller.finish("a", after=1.0)
    teller.finish("b", after=4.0)
    send(teller, "c", 0.0)  # it waited 15 s, but ends only 2 s after b
    teller.finish("c", after=2.0, final=True)
    assert (teller.closed.seconds, teller.closed.queue_s) == (17.0, 12.0)
    assert teller.closed.slowdown == 17.0 / 5.0


def test_a_wait_in_vain_is_a_wait_and_an_engine_that_failed_is_none() -> None:
    teller = Teller()
    wait(teller, "a", relation="new")
    teller.tell(ev.ClientGone(step=A), after=3.0)
    wait(teller, "b")
    teller.tell(
        ev.TimerFired(),
        do.Reject(step=StepId("b"), status=503, retry_after_s=1.0, reason="queue_timeout"),
        after=4.0,
    )
    teller.arrive("c")
    teller.tell(ev.StepFailed(step=StepId("c"), reason="broke", retryable=True), after=50.0)
    send(teller, "c", 2.0)
    teller.tell(
        ev.EngineLost(engine=E0), do.Abort(step=StepId("c"), engine=E0, reason="engine_lost"), after=60.0
    )
    send(teller, "c", 1.0)
    teller.finish("c", after=5.0, final=True)
    assert (teller.closed.seconds, teller.closed.queue_s) == (125.0, 10.0)


def test_a_call_beside_the_programs_own_leaves_its_gap_and_context_alone() -> None:
    teller = Teller()
    teller.arrive("a", relation="new")
    teller.finish("a", tools=("ls",))  # 1100 tokens
    teller.arrive("title", after=1.0, relation="auxiliary", prompt_tokens=50)
    teller.finish("title", after=2.0, prompt_tokens=50, output_tokens=5, turn_done=True)
    teller.arrive("b", after=4.0, returned=("ls",), prompt_tokens=1500)
    teller.finish("b", prompt_tokens=1500, cached_tokens=300, final=True)
    assert (teller.closed.tool_s, teller.closed.human_s) == (7.0, 0.0)
    assert teller.of(facts.StepOver)[-1].refilled_tokens == 800


def test_while_another_step_runs_no_tool_holds_the_program_up() -> None:
    teller = Teller()
    teller.arrive("a", relation="new")
    teller.arrive("b")
    teller.finish("a", after=2.0, tools=("ls",))
    teller.arrive("c", after=3.0, returned=("ls",))
    teller.finish("b", after=1.0)
    teller.finish("c", after=1.0, final=True)
    assert (teller.closed.seconds, teller.closed.tool_s) == (7.0, 0.0)


def test_a_pin_can_be_missed_revoked_refused_or_lost() -> None:
    def ended(
        *happens: tuple[ev.AnyEvent, tuple[do.AnyDecision, ...]], engine: str = "e0", until: float = 1e9
    ) -> str:
        teller = Teller()
        teller.arrive("a", relation="new")
        teller.finish("a", pin(until))
        for event, decisions in happens:
            teller.tell(event, *decisions, after=1.0)
        teller.arrive("b", after=10.0, engine=engine)
        return teller.pins[0].end

    unpin = do.Unpin(program=P, engine=E0, reason="outranked")
    refused = ev.DecisionDone(decision="Pin", program=P, engine=E0, outcome="refused")
    assert ended() == "hit"
    assert ended(engine="e1") == "moved"
    assert ended(until=105.0) == "expired"
    assert ended((ev.TimerFired(), (unpin,))) == "revoked"
    assert ended((ev.TimerFired(), (unpin,)), until=102.5) == "expired"
    assert ended((ev.TimerFired(), (do.Unpin(program=P, engine=E0, reason="moved"),))) == "moved"
    assert ended((refused, ())) == "refused"
    assert ended((ev.EngineLost(engine=E0), ())) == "lost"
    assert ended((ev.ProgramEnded(program=P), ())) == "ended"


def test_room_that_was_kept_without_a_word_counts_as_a_pin() -> None:
    teller = Teller()
    teller.arrive("a", relation="new", reason="kept")
    assert teller.pins == []  # the first step comes back to nothing
    teller.finish("a")
    teller.arrive("b", after=4.0, reason="kept")
    teller.finish("b")
    teller.tell(ev.TimerFired(), do.Unpin(program=P, engine=E0, reason="not_worth"), after=6.0)
    assert [(p.end, p.held_s, p.announced) for p in teller.pins] == [
        ("hit", 4.0, False),
        ("revoked", 6.0, False),
    ]


def test_a_warm_is_used_late_or_for_nothing() -> None:
    def ended(*, done: bool, engine: str) -> str:
        teller = Teller()
        teller.arrive("a", relation="new")
        warm = do.Warm(program=P, engine=E0, tokens=10, due=teller.now + 5, reason="return")
        teller.finish("a", warm)
        if done:
            teller.tell(ev.DecisionDone(decision="Warm", program=P, engine=E0, outcome="accepted"))
        teller.arrive("b", engine=engine, after=5.0)
        [over] = teller.of(facts.WarmOver)
        return over.end

    assert ended(done=True, engine="e0") == "used"
    assert ended(done=False, engine="e0") == "late"
    assert ended(done=True, engine="e1") == "unused"


def test_context_that_must_be_computed_again_is_counted() -> None:
    teller = Teller()
    teller.arrive("a", relation="new")
    teller.finish("a")  # 1000 in, 100 out
    teller.arrive("b", prompt_tokens=1500)
    teller.finish("b", prompt_tokens=1500, cached_tokens=300)
    teller.arrive("c", prompt_tokens=200, relation="compaction")
    teller.finish("c", prompt_tokens=200)
    assert [fact.refilled_tokens for fact in teller.of(facts.StepOver)] == [0, 800, 0]


def test_a_step_that_is_sent_again_is_no_second_step_and_given_up_it_failed() -> None:
    teller = Teller()
    teller.arrive("a", relation="new")
    teller.tell(ev.StepFailed(step=A, reason="broke", retryable=True), do.Dispatch(step=A, engine=E1))
    teller.tell(ev.StepFailed(step=A, reason="broke", retryable=True))
    teller.tell(ev.ProgramEnded(program=P))
    assert (teller.closed.steps, teller.closed.failed_steps) == (0, 1)


def test_memory_is_bounded_and_the_forgotten_are_closed() -> None:
    teller = Teller(programs_max=3)
    for k in range(10):
        teller.arrive(f"s{k}", program=f"p{k}", relation="new", after=1.0)
        teller.finish(f"s{k}", tools=("ls",))
    assert teller.story.live == 3
    assert {fact.reason for fact in teller.of(facts.ProgramClosed)} == {"forgotten"}
    teller.facts += teller.story.expire(teller.now + 1e6)
    assert teller.story.live == 0
    assert len(teller.of(facts.ProgramClosed)) == len(teller.of(facts.ProgramOpened)) == 10
    assert len(teller.tools) == 10


def test_a_program_opens_with_the_workflow_that_it_was_declared_with() -> None:
    teller = Teller()
    declared = ev.ProgramDeclared(program=P, tenant=TenantId("t"), workflow=WorkflowId("report"))
    teller.tell(declared)
    teller.arrive("a", program="q", relation="new", workflow="ask")
    assert [fact.workflow for fact in teller.of(facts.ProgramOpened)] == ["report", "ask"]
    teller.arrive("b", relation="new")  # says nothing of it: the declared one stays
    teller.finish("b")
    assert teller.of(facts.StepOver)[-1].workflow == "report"


def test_what_a_client_measured_of_its_tools_is_told_instead_of_the_gap() -> None:
    t = Teller()
    t.arrive("s1")
    t.finish("s1", tools=("bash", "read"))
    t.arrive("s2", after=60.0, returned=("bash", "read"), measured=(("bash", 0.5),))
    assert [(tool.name, tool.seconds, tool.measured) for tool in t.tools] == [
        ("bash", 0.5, True),
        ("read", 60.0, False),
    ]
