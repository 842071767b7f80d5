"""What is noted of programs, steps and engines, and who is told of it: forecasts learn, and the policy hears."""

from __future__ import annotations

from typing import Any

import pytest

from agentserve.core import events as ev
from agentserve.core.board import Board, Limits
from agentserve.core.fleet import Engine
from agentserve.core.foresight import Naive
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.policies.policy import Policy
from agentserve.core.program import Program, Step
from agentserve.core.scheduler import Scheduler

BASH = ev.PendingTool(id="c", name="bash")


class Pupil(Naive):
    """Notes what it is to learn from."""

    def __init__(self) -> None:
        super().__init__()
        self.lessons: list[str] = []

    def learn(self, event: Any, program: Any, step: Any, now: float) -> None:
        self.lessons.append(type(event).__name__)


class Hearing(Policy):
    """Sends everything to the first engine, and notes what it is told."""

    name = "hearing"

    def setup(self) -> None:
        self.heard: list[Any] = []

    def arrived(self, step: Step, now: float) -> None:
        engines = self.board.fleet.usable(step.model)
        if engines:
            self.board.dispatch(step, engines[0], now, "first")

    def started(self, step: Step, now: float) -> None:
        self.heard.append(("started", step.id))

    def closed(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        self.heard.append(("closed", step.id, finished, engine.id if engine is not None else None))

    def ended(self, program: Program, now: float) -> None:
        self.heard.append(("ended", program.id))

    def hinted(self, program: Program, now: float) -> None:
        self.heard.append(("hinted", program.id))

    def engine_changed(self, engine: Engine, now: float) -> None:
        self.heard.append(("engine", engine.id, engine.up))


class World:
    """One engine, a policy and forecasts that only listen."""

    def __init__(self, **limits: Any) -> None:
        self.pupil = Pupil()
        self.board = Board(foresight=self.pupil, limits=Limits(**limits))
        self.policy = Hearing(self.board)
        self.scheduler = Scheduler(self.board, self.policy)
        self.tell(ev.EngineReported(engine=EngineId("e"), kv_tokens=10_000), 0.0)
        self.policy.heard.clear()

    def tell(self, event: ev.AnyEvent, now: float) -> Any:
        out = self.scheduler.handle(event, now)
        self.scheduler.check()
        self.scheduler.settle()
        return out

    def arrive(self, program: str, step: str, now: float = 0.0, **extra: Any) -> Any:
        extra = {"tenant": TenantId("t"), "prompt_tokens": 100, **extra}
        return self.tell(ev.StepArrived(step=StepId(step), program=ProgramId(program), **extra), now)

    def finish(self, step: str, now: float = 1.0, **extra: Any) -> Any:
        return self.tell(
            ev.StepFinished(step=StepId(step), prompt_tokens=100, output_tokens=10, **extra), now
        )

    def program(self, name: str) -> Program:
        return self.board.programs[ProgramId(name)]


def test_the_policy_hears_of_a_steps_first_byte_once_and_of_its_end() -> None:
    w = World()
    w.arrive("p", "a")
    for _ in range(2):
        w.tell(ev.StepStarted(step=StepId("a")), 0.5)
    w.tell(ev.StepStarted(step=StepId("unknown")), 0.5)
    w.finish("a")
    w.finish("a")
    assert w.policy.heard == [("started", "a"), ("closed", "a", True, "e")]


def test_the_policy_hears_of_a_step_that_came_to_nothing_and_its_work_counts_for_the_engine() -> None:
    w = World()
    w.arrive("p", "a")
    w.tell(ev.ClientGone(step=StepId("a")), 1.0)
    assert w.policy.heard == [("closed", "a", False, "e")]
    assert w.board.fleet[EngineId("e")].written == 100, (
        "its prompt was written, and pushed out what was older"
    )


def test_the_policy_hears_of_tools_and_hints_and_of_engines_that_go() -> None:
    w, p = World(), ProgramId("p")
    w.arrive("p", "a")
    w.finish("a", tools=(BASH,))
    w.policy.heard.clear()
    w.tell(ev.ToolStarted(program=p, tool=BASH), 2.0)
    w.tell(ev.ToolEnded(program=p, tool_id="c", duration_s=1.0), 3.0)
    w.tell(ev.HintGiven(program=p, returns_in_s=1.0), 3.0)
    w.tell(ev.EngineLost(engine=EngineId("e")), 4.0)
    w.tell(ev.EngineLost(engine=EngineId("e")), 4.0)
    w.tell(ev.EngineLost(engine=EngineId("never seen")), 4.0)
    assert w.policy.heard == [("hinted", "p")] * 3 + [("engine", "e", False)]


def test_forecasts_learn_from_every_event_that_shows_something() -> None:
    w, p = World(), ProgramId("p")
    w.tell(ev.ProgramDeclared(program=p, tenant=TenantId("t")), 0.0)
    w.arrive("p", "a")
    w.finish("a", tools=(BASH,))
    w.tell(ev.ToolStarted(program=p, tool=BASH), 1.0)
    w.tell(ev.ToolEnded(program=p, tool_id="c", duration_s=1.0), 2.0)
    w.tell(ev.HintGiven(program=p, steps_left=1.0), 2.0)
    w.arrive("p", "b", 3.0)
    w.tell(ev.StepFailed(step=StepId("b"), reason="broke", retryable=False), 4.0)
    w.tell(ev.ProgramEnded(program=p, reason="told"), 5.0)
    assert w.pupil.lessons == [
        "ProgramDeclared", "StepArrived", "StepFinished", "ToolStarted", "ToolEnded", "HintGiven", "StepArrived",
        "StepFailed", "ProgramEnded",
    ]  # fmt: skip
    assert not w.board.programs


def test_what_an_event_asks_for_its_program_is_noted_and_its_sub_agents_begin_with_it() -> None:
    w = World()
    w.arrive("p", "a", 10.0, workflow="review", priority="batch", deadline_s=60.0)
    w.arrive("child", "c", 20.0, parent=ProgramId("p"))
    for name in ("p", "child"):
        assert (w.program(name).priority, w.program(name).deadline_at) == ("batch", 70.0)
    assert (w.program("p").workflow, w.program("child").workflow) == ("review", None)
    w.finish("a", 21.0)
    w.arrive("p", "b", 22.0)
    assert w.program("p").workflow == "review", "what is not said again stays"
    assert w.program("p").created_at == 10.0


def test_steps_that_are_said_to_be_left_are_counted_down_to_none() -> None:
    w, p = World(), ProgramId("p")
    w.tell(ev.ProgramDeclared(program=p, tenant=TenantId("t"), steps_expected=3), 0.0)
    left = []
    for at in range(4):
        w.arrive("p", f"s{at}", at + 0.0)
        w.finish(f"s{at}", at + 0.5)
        left.append(w.program("p").steps_left_told)
    assert left == [2.0, 1.0, 0.0, 0.0]
    w.tell(ev.HintGiven(program=p, steps_left=5.0), 9.0)
    assert w.program("p").steps_left_told == 5.0
    w.tell(ev.HintGiven(program=p, returns_in_s=5.0), 9.0)
    assert w.program("p").steps_left_told == 5.0


def test_a_step_of_the_clock_s_very_first_moment_took_its_time_too() -> None:
    w = World()
    w.arrive("p", "a", 0.0)
    w.finish("a", 5.0)
    assert w.program("p").attained_s == pytest.approx(5.0)


def test_time_on_engines_adds_up_and_a_gap_goes_on_through_an_auxiliary_step() -> None:
    w = World()
    w.arrive("p", "a", 1.0)
    w.finish("a", 5.0)
    w.arrive("p", "title", 6.0, relation="auxiliary")
    w.finish("title", 7.0)
    assert w.program("p").gap_started_at == 5.0
    assert w.program("p").attained_s == pytest.approx(5.0)
    w.arrive("p", "b", 10.0)
    assert w.program("p").gap_started_at is None


def test_only_the_last_of_parallel_tools_ends_a_gap() -> None:
    w, p = World(), ProgramId("p")
    w.arrive("p", "a")
    w.finish("a", tools=(BASH, ev.PendingTool(id="d", name="read")))
    w.tell(ev.ToolEnded(program=p, tool_id="c", duration_s=1.0), 2.0)
    assert (list(w.program("p").pending or ()), w.program("p").returns_at) == (["d"], None)
    w.tell(ev.ToolEnded(program=p, tool_id="d", duration_s=1.0), 3.0)
    assert (w.program("p").pending, w.program("p").returns_at) == (None, 3.0)
    w.tell(ev.ToolEnded(program=p, tool_id="never asked for", duration_s=1.0), 4.0)
    assert w.program("p").pending is None


def test_a_retryable_failure_of_a_step_that_waits_again_changes_nothing() -> None:
    w = World()
    w.arrive("p", "a")
    w.tell(ev.EngineLost(engine=EngineId("e")), 1.0)  # it waits once more
    w.tell(ev.StepFailed(step=StepId("a"), reason="reset", retryable=True), 1.1)
    assert StepId("a") in w.board.waiting


def test_a_program_that_runs_is_not_taken_for_idle_and_hides_no_idle_one() -> None:
    w = World(program_idle_s=60.0)
    w.arrive("long", "a", 0.0)
    for at, name in enumerate(("idle", "fresh")):
        w.arrive(name, name, 1.0 + 50.0 * at)
        w.finish(name, 2.0 + 50.0 * at)
    w.tell(ev.TimerFired(), 70.0)
    assert set(w.board.programs) == {"long", "fresh"}
    w.finish("a", 80.0)
    assert w.scheduler.next_deadline() == pytest.approx(112.0), "fresh was heard of at 52, the others later"


def test_being_heard_of_keeps_a_program() -> None:
    w, p = World(program_idle_s=60.0), ProgramId("p")
    w.arrive("p", "a", 0.0)
    w.finish("a", 1.0)
    for at in (50.0, 100.0, 150.0):
        w.tell(ev.ProgramDeclared(program=p, tenant=TenantId("t")), at)
        w.tell(ev.TimerFired(), at + 1.0)
    assert w.program("p").last_seen_at == 150.0
