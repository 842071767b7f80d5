"""Random events with faults, as a state machine: whatever happens, no step is lost and nobody starves.

Rules drive a scheduler as clients and engines would: programs open, fork, run tools, hint, vanish; engines fail steps,
evict, are lost, drained and come back. After every rule the invariants hold; at the end everything can be finished.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits, Share
from agentserve.core.foresight import Naive
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.learned import Learned
from agentserve.core.policies import make_policy
from agentserve.core.policies.seats import Seat
from agentserve.core.policies.working_set import WorkingSet
from agentserve.core.program import Step, StepState
from agentserve.core.scheduler import RETRIES_MAX, Scheduler

KV_TOKENS = 20_000
ENGINES = (EngineId("e0"), EngineId("e1"))
TENANTS = {TenantId("light"): 1.0, TenantId("heavy"): 1.0, TenantId("paying"): 4.0}
STEPS_MAX = 5
PATIENT = Limits(queue_timeout_s=1e9, program_idle_s=1e9)
# Steps are refused, of those that wait too long and of those that are too many, and programs unheard of are forgotten.
IMPATIENT = Limits(queue_timeout_s=20.0, program_idle_s=60.0, waiting_steps_max=6, live_programs_max=8)
SETTLED_WITHIN = 20_000  # events
SOON_S = 60.0

numbers = st.integers(0, 10_000)


class Fleet(RuleBasedStateMachine):
    """Two engines, three tenants, and a scheduler under a policy; the subclass says which."""

    policy = "agentserve"
    params: dict[str, Any] = {}
    forecasts: type[Any] = Naive
    limits: Limits = PATIENT
    models: tuple[tuple[str, ...], ...] = ((), ())  # that the engines serve

    def __init__(self) -> None:
        super().__init__()
        shares = {name: Share(weight=weight) for name, weight in TENANTS.items()}
        self.board = Board(foresight=self.forecasts(), limits=self.limits, shares=shares)
        self.scheduler = Scheduler(self.board, make_policy(self.policy, self.board, self.params))
        self.now = 0.0
        self.sent: dict[ProgramId, int] = {}  # program -> steps it sent
        self.over: set[ProgramId] = set()
        self.open: set[StepId] = set()  # steps that arrived and were neither finished nor given up
        self.went: dict[StepId, int] = {}  # step -> times it was dispatched
        self.allowed: dict[StepId, int] = {}  # step -> times it may be
        self.up = set(ENGINES)

    # -- the world

    @initialize()
    def begin(self) -> None:
        for engine, models in zip(ENGINES, self.models, strict=True):
            self.tell(ev.EngineBack(engine=engine))
            self.tell(
                ev.EngineReported(
                    engine=engine, kv_tokens=KV_TOKENS, prefill_tokens_per_s=5_000.0, models=models
                )
            )

    def tell(self, event: ev.AnyEvent, after: float = 0.01) -> None:
        self.now += after
        for decision in self.scheduler.handle(event, self.now):
            if isinstance(decision, do.Dispatch):
                step = decision.step
                self.went[step] = self.went.get(step, 0) + 1
                assert step in self.open, f"{step} was dispatched though nobody waits for it"
                assert self.went[step] <= self.allowed[step], f"{step} was dispatched twice"
                assert decision.engine in self.up, f"{step} went to {decision.engine}, which is lost"
                here = self.board.fleet[decision.engine]
                assert here.usable(self.board.steps[step].model), f"{step} went where its model is not"
            elif isinstance(decision, do.Reject):
                assert self.limits is not PATIENT, f"{decision.step} was refused: {decision.reason}"
                assert decision.step in self.open, f"{decision.step} was refused though nobody waits for it"
                self.open.discard(decision.step)
        self.scheduler.check()

    def flying(self) -> list[Step]:
        return [s for s in self.board.steps.values() if s.in_flight]

    def resting(self) -> list[ProgramId]:
        live = self.board.programs
        return [p for p in self.sent if p not in self.over and (p not in live or live[p].idle)]

    def send(self, program: ProgramId, number: int, **extra: Any) -> None:
        index = self.sent[program]
        self.sent[program] += 1
        name = StepId(f"{program}/{index}")
        self.open.add(name)
        self.allowed[name] = 1
        served = sorted({model for models in self.models for model in models})
        self.tell(
            ev.StepArrived(
                step=name,
                model=served[number // 7 % len(served)] if served else "",
                program=program,
                tenant=list(TENANTS)[int(program[1:]) % len(TENANTS)],
                prompt_tokens=700 + 1200 * index + number % 3000,
                prefix=(ev.Segment(number % 2 + 1, 500),),
                **extra,
            )
        )

    def given_up(self, step: Step) -> None:
        self.open.discard(step.id)

    # -- what clients do

    @rule(number=numbers)
    def a_program_opens(self, number: int) -> None:
        name = ProgramId(f"p{len(self.sent)}")
        self.sent[name] = 0
        extra: dict[str, Any] = (
            {"priority": ("interactive", "standard", "batch")[number % 3]} if number % 5 == 0 else {}
        )
        self.send(name, number, **extra)

    @precondition(lambda self: self.resting())
    @rule(number=numbers)
    def a_program_returns(self, number: int) -> None:
        resting = self.resting()
        self.now += number % 40
        relation = "auxiliary" if number % 7 == 0 else "continues"
        self.send(resting[number % len(resting)], number, relation=relation)

    @precondition(lambda self: self.board.steps)
    @rule(number=numbers)
    def a_program_forks(self, number: int) -> None:
        steps = [s for s in self.board.steps.values() if s.program.id not in self.over]
        if steps:
            relation = "auxiliary" if number % 3 == 0 else "fork"
            self.send(steps[number % len(steps)].program.id, number, relation=relation)

    @precondition(lambda self: self.board.steps)
    @rule(number=numbers)
    def a_client_goes_away(self, number: int) -> None:
        step = list(self.board.steps.values())[number % len(self.board.steps)]
        self.given_up(step)
        self.tell(ev.ClientGone(step=step.id))

    @precondition(lambda self: self.resting())
    @rule(number=numbers, told=st.booleans())
    def a_program_says_when_it_returns(self, number: int, told: bool) -> None:
        resting = self.resting()
        name = resting[number % len(resting)]
        if told:
            self.tell(ev.HintGiven(program=name, returns_in_s=float(number % 20)))
        else:
            self.tell(ev.ToolEnded(program=name, tool_id="c", duration_s=1.0))

    @precondition(lambda self: self.resting())
    @rule(number=numbers)
    def a_program_is_over_in_its_gap(self, number: int) -> None:
        resting = self.resting()
        name = resting[number % len(resting)]
        self.over.add(name)
        self.tell(ev.ProgramEnded(program=name))

    @precondition(lambda self: self.board.steps)
    @rule(number=numbers)
    def a_program_is_over_while_its_steps_wait_or_run(self, number: int) -> None:
        step = list(self.board.steps.values())[number % len(self.board.steps)]
        self.over.add(step.program.id)
        self.tell(ev.ProgramEnded(program=step.program.id))

    # -- what engines do

    @precondition(lambda self: self.flying())
    @rule(number=numbers)
    def a_first_byte_comes(self, number: int) -> None:
        flying = self.flying()
        self.tell(ev.StepStarted(step=flying[number % len(flying)].id))

    @precondition(lambda self: self.flying())
    @rule(number=numbers)
    def a_step_finishes(self, number: int) -> None:
        flying = self.flying()
        step = flying[number % len(flying)]
        name = step.program.id
        final = self.sent[name] >= STEPS_MAX and len(step.program.open_steps) == 1
        if final:
            self.over.add(name)
        self.given_up(step)
        self.tell(
            ev.StepFinished(
                step=step.id,
                prompt_tokens=step.prompt_tokens,
                output_tokens=number % 400,
                cached_tokens=min(step.expected_cached, number),
                tools=() if final else (ev.PendingTool(id="c", name="bash"),),
                final=final,
            ),
            after=0.3,
        )

    @precondition(lambda self: self.flying())
    @rule(number=numbers, retryable=st.booleans())
    def an_engine_fails_a_step(self, number: int, retryable: bool) -> None:
        flying = self.flying()
        step = flying[number % len(flying)]
        if retryable and step.state is StepState.DISPATCHED and step.retries < RETRIES_MAX:
            self.allowed[step.id] += 1
        else:
            retryable = False
            self.given_up(step)
        self.tell(ev.StepFailed(step=step.id, reason="busy", retryable=retryable))

    @rule(number=numbers)
    def an_engine_is_lost(self, number: int) -> None:
        name = ENGINES[number % 2]
        if name not in self.up:
            return
        self.up.discard(name)
        here = [s for s in self.flying() if s.engine == name]
        for step in here:
            if step.state is StepState.DISPATCHED and step.retries < RETRIES_MAX:
                self.allowed[step.id] += 1
        self.tell(ev.EngineLost(engine=name))
        for step in [s for s in here if s.engine == name and s.in_flight]:
            self.given_up(step)
            self.tell(ev.StepFailed(step=step.id, reason="lost"))

    @rule(number=numbers)
    def an_engine_comes_back(self, number: int) -> None:
        name = ENGINES[number % 2]
        if name not in self.up:
            self.up.add(name)
            self.tell(ev.EngineBack(engine=name))
        self.tell(ev.EngineReported(engine=name, kv_tokens=KV_TOKENS, draining=False))

    @rule(number=numbers)
    def an_engine_drains(self, number: int) -> None:
        if number % 4 == 0:
            self.tell(ev.EngineReported(engine=ENGINES[number % 2], draining=True))

    @precondition(lambda self: self.resting())
    @rule(number=numbers)
    def an_engine_evicts(self, number: int) -> None:
        resting = self.resting()
        name = resting[number % len(resting)]
        self.tell(ev.KvRemoved(engine=ENGINES[number % 2], program=name, tokens_left=number))

    @precondition(lambda self: (self.scheduler.next_deadline() or 1e9) < 1e8)
    @rule()
    def a_timer_fires(self) -> None:
        self.now = max(self.now, self.scheduler.next_deadline() or 0.0)
        self.tell(ev.TimerFired())

    # -- what must hold

    @invariant()
    def every_open_step_is_on_the_books_and_no_other(self) -> None:
        assert set(self.board.steps) == self.open

    @invariant()
    def no_engine_is_over_its_budget(self) -> None:
        policy = self.scheduler.policy
        if not isinstance(policy, WorkingSet):
            return
        for engine, (seated, load) in policy.seats().items():
            running = [s for s in self.flying() if s.engine == engine]
            apart = len({s.program.id for s in running})
            own = sum(s.footprint for s in running)
            shared = 500 * max(len(running) - 1, 0)
            # Seats may outgrow the ceiling, but then steps are held: what runs fits, or one program runs alone.
            assert apart <= 1 or own - shared <= KV_TOKENS + self.late_growth(running), (engine, seated, load)

    def late_growth(self, running: list[Step]) -> int:
        """What forks, retries and guests may add: a running program is never stopped half way."""
        return sum(s.footprint for s in running if s.relation != "continues" or s.retries or self.is_guest(s))

    def is_guest(self, step: Step) -> bool:
        """Its program's seat is elsewhere, or it has none."""
        seat = step.program.own
        return not isinstance(seat, Seat) or seat.book.engine.id != step.engine

    @invariant()
    def something_always_moves(self) -> None:
        """With all pinned and the queue full: a step runs, or a timer will look again soon, or no engine is there."""
        served = [s for s in self.board.waiting.values() if self.board.fleet.usable(s.model)]
        if not served or self.flying():
            return
        due = self.scheduler.next_deadline()
        waits_s = 1e18 if due is None else due - self.now
        assert waits_s < SOON_S, f"{len(self.board.waiting)} wait for nothing"

    def teardown(self) -> None:
        """No more faults: every step is dispatched, every program ends, and nobody waits for ever."""
        if not self.board.fleet.engines:
            return
        for number in (0, 1):
            self.an_engine_comes_back(number)
        for _ in range(SETTLED_WITHIN):
            if self.flying():
                self.a_step_finishes(0)
            elif self.board.waiting:
                due = self.scheduler.next_deadline() or 1e18
                assert due - self.now < SOON_S, "it waits for nothing"
                self.now = max(self.now, due)
                self.tell(ev.TimerFired())
            elif resting := self.resting():
                self.send(resting[0], 1)
            else:
                break
        assert not self.board.steps, f"never served: {sorted(self.board.waiting)}"
        assert not self.resting()
        assert not [p for p in self.board.programs.values() if isinstance(p.own, Seat) and p.ended]


def machine(
    policy: str,
    forecasts: type[Any] = Naive,
    limits: Limits = PATIENT,
    models: tuple[tuple[str, ...], ...] = ((), ()),
    **params: Any,
) -> type[Fleet]:
    chosen = {"policy": policy, "forecasts": forecasts, "limits": limits, "models": models, "params": params}
    return type(f"Fleet_{policy}", (Fleet,), chosen)


ARMS: dict[str, type[Fleet]] = {
    "agentserve": machine("agentserve"),
    "agentserve, learned forecasts": machine("agentserve", Learned),
    "agentserve, impatient": machine("agentserve", Learned, IMPATIENT),
    "agentserve, two models": machine("agentserve", Learned, models=(("big",), ("big", "small"))),
    "agentserve, two models apart": machine("agentserve", limits=IMPATIENT, models=(("big",), ("small",))),
    "agentserve, every gap pinned for an hour": machine("agentserve", ttl_s=3600.0),
    "agentserve, no reservation": machine("agentserve", reserve_gaps=False),
    **{name: machine(name) for name in ("affinity", "thunderagent", "continuum", "saga", "justitia", "plas")},
    **{
        f"{name}, impatient": machine(name, limits=IMPATIENT) for name in ("affinity", "thunderagent", "saga")
    },
}


@pytest.mark.parametrize("arm", ARMS)
def test_whatever_happens_no_step_is_lost_or_sent_twice_and_everything_ends(arm: str) -> None:
    run_state_machine_as_test(
        ARMS[arm],
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_program_whose_forks_are_held_goes_back_to_the_line_with_all_of_them(desk: Any) -> None:
    world = desk(kv_tokens=10_000)
    for name, tokens in (("x", 1500), ("a", 2500), ("b", 2500)):
        world.arrive(name, tokens=tokens)
    world.finish("a", tokens=2500)
    world.finish("b", tokens=2500)
    world.arrive("b", 1, tokens=6000)
    world.arrive("b", 2, tokens=6000, relation="fork")
    world.arrive("a", 1, tokens=2600)
    assert not {"a/1", "b/1", "b/2"} & set(world.dispatched), "the seated outgrew the ceiling"
    world.finish("x", tokens=1500, final=True)
    assert "a/1" in world.dispatched, "the better one goes on"
    world.finish("a", 1, tokens=2600, final=True)
    world.fire(5.0)
    assert {"b/1", "b/2"} <= set(world.dispatched)
