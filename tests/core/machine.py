"""A scheduler under random events, as a state machine: what clients, tools and engines do, and what must hold then.

Rules drive a scheduler as clients and engines would: programs open, fork, run tools, hint, vanish; engines fail steps,
evict, are lost, drained and come back. After every rule the invariants hold; at the end everything can be finished.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits, Share
from agentserve.core.foresight import Naive
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
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
TIMERS_AT_ONCE_MAX = 20

numbers = st.integers(0, 10_000)


class Fleet(RuleBasedStateMachine):
    """Two engines, three tenants, and a scheduler under a policy; the subclass says which."""

    policy = "agentserve"
    params: dict[str, Any] = {}
    forecasts: type[Any] = Naive
    limits: Limits = PATIENT
    models: tuple[tuple[str, ...], ...] = ((), ())  # that the engines serve
    tenants_many = False  # each program is another tenant's

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
        self.gone: list[StepId] = []  # of those that are over, the latest
        self.holds = dict.fromkeys(ENGINES, KV_TOKENS)
        self.shrunk: set[EngineId] = set()  # engines that hold less than when they took what runs there
        self.clock_runs = True

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
        self.now += after if self.clock_runs else 0.0
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
                self.given_up(decision.step)
        self.shrunk = {e for e in self.shrunk if self.board.fleet[e].steps}
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
        tokens = 700 + 1200 * index + number % 3000
        extra.setdefault("prefix", (ev.Segment(number % 2 + 1, 500),))
        self.tell(
            ev.StepArrived(
                step=name,
                model=served[number // 7 % len(served)] if served else "",
                program=program,
                tenant=self.tenant_of(program),
                prompt_tokens=extra.pop("prompt_tokens", tokens),
                **extra,
            )
        )

    def tenant_of(self, program: ProgramId) -> TenantId:
        number = int(program[1:])
        return TenantId(f"t{number}") if self.tenants_many else list(TENANTS)[number % len(TENANTS)]

    def given_up(self, step: StepId) -> None:
        self.open.discard(step)
        self.gone = [*self.gone[-20:], step]

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
        self.given_up(step.id)
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
        self.given_up(step.id)
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
            self.given_up(step.id)
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
            self.given_up(step.id)
            self.tell(ev.StepFailed(step=step.id, reason="lost"))

    @rule(number=numbers)
    def an_engine_comes_back(self, number: int) -> None:
        name = ENGINES[number % 2]
        if name not in self.up:
            self.up.add(name)
            self.tell(ev.EngineBack(engine=name))
        self.will_hold(name, KV_TOKENS)
        self.tell(ev.EngineReported(engine=name, kv_tokens=KV_TOKENS, draining=False))

    def will_hold(self, engine: EngineId, kv_tokens: int) -> None:
        if kv_tokens < self.holds[engine]:
            self.shrunk.add(engine)
        self.holds[engine] = kv_tokens

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
        for _ in range(TIMERS_AT_ONCE_MAX):
            self.tell(ev.TimerFired(), after=0.0)
            if (self.scheduler.next_deadline() or 1e9) > self.now:
                return
        raise AssertionError(f"the timer fires for ever at {self.now}")

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
            # what forks, retries and guests add comes late: a running program is never stopped half way
            running = [s for s in self.flying() if s.engine == engine and not self.is_late(s)]
            apart = len({s.program.id for s in running})
            shared = sum(sorted(s.program.shared_tokens for s in running)[:-1])
            fits = sum(s.footprint for s in running) - shared <= self.holds[engine]
            # Seats may outgrow the ceiling, but then steps are held: what runs fits, or one program runs alone.
            assert apart <= 1 or fits or engine in self.shrunk, (engine, seated, load)

    def is_late(self, step: Step) -> bool:
        return step.relation not in ("continues", "subagent") or bool(step.retries) or self.is_guest(step)

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
        self.clock_runs = True
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
