"""The simulated world: clients that run programs, a network, engines, and the live scheduler between them.

Rule: a heap of (time, sequence, what); nothing here waits or reads a clock, and equal seeds give equal runs,
bit for bit. The world carries out decisions just as the live driver does, and knows nothing of policies.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId
from agentserve.core.scheduler import Scheduler
from agentserve.engine import (
    EmulatedEngine,
    EngineRequest,
    FirstToken,
    RequestFinished,
    RequestRejected,
    RequestStarted,
)
from agentserve.errors import AgentServeError
from agentserve.sim.contents import Text
from agentserve.sim.faults import Fault
from agentserve.sim.oracle import Oracle
from agentserve.sim.programs import ProgramPlan, StepPlan, Workload

WARM_PRIORITY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One-way delays, constant."""

    client_s: float = 0.0005
    engine_s: float = 0.0005


@dataclass(slots=True, kw_only=True, eq=False)
class Live:
    """A program under way."""

    index: int
    plan: ProgramPlan
    text: Text
    started_at: float
    next_step: int = 0
    open_children: int = 0
    waiting_parent: int | None = None
    ready_at: float = 0.0  # when its tools and thinking are done
    returned: tuple[str, ...] = ()
    attempt: int = 0


@dataclass(slots=True, kw_only=True)
class StepTrace:
    """What happened to one step; times in seconds of virtual time."""

    program: int
    index: int
    sent_at: float
    dispatched_at: float = 0.0
    started_at: float = 0.0  # when the engine took it out of its own queue
    first_at: float = 0.0
    ended_at: float = 0.0
    engine: int = -1
    prompt: int = 0
    output: int = 0
    cached: int = 0
    fresh: int = 0  # prompt tokens that this program never sent before
    ok: bool = True


@dataclass(slots=True, kw_only=True)
class ProgramTrace:
    """What happened to one program."""

    index: int
    started_at: float
    ended_at: float


@dataclass(slots=True, kw_only=True)
class Result:
    """Everything a report is made from."""

    steps: list[StepTrace] = field(default_factory=list)
    programs: list[ProgramTrace] = field(default_factory=list)
    decisions: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    failed: int = 0
    unservable: int = 0  # programs whose prompt outgrew every engine
    warms: int = 0
    warm_hits: int = 0
    ended_at: float = 0.0
    kv_running_token_s: float = 0.0
    kv_idle_token_s: float = 0.0
    kv_capacity_token_s: float = 0.0
    samples: list[tuple[float, list[tuple[int, int, int]]]] = field(default_factory=list)
    service: dict[str, float] = field(default_factory=dict)


class World:
    """One run: `run()` until every program is over."""

    def __init__(
        self,
        *,
        workload: Workload,
        engines: Sequence[EmulatedEngine],
        scheduler: Scheduler,
        concurrency: int | None,
        oracle: Oracle | None = None,
        network: Network | None = None,
        faults: Sequence[Fault] = (),
        check: bool = False,
        sample_every_s: float = 0.0,
        native_pins: bool = False,
        until_s: float = 10_000_000.0,
    ) -> None:
        self.workload = workload
        self.engines = list(engines)
        self.scheduler = scheduler
        self.concurrency = concurrency
        self.network = network or Network()
        self.faults = faults
        self.check = check
        self.sample_every_s = sample_every_s
        self.native_pins = native_pins
        self.until_s = until_s
        self.result = Result()
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._live: dict[int, Live] = {}
        self._steps: dict[str, tuple[Live, StepPlan, StepTrace]] = {}
        self._index_of = {p.id: i for i, p in enumerate(workload.programs)}
        self._engine_ids = [EngineId(f"e{i}") for i in range(len(self.engines))]
        self._wake: list[float | None] = [None] * len(self.engines)
        self._timer: float | None = None
        self._roots = iter(workload.roots)
        self._roots_open = 0
        self._warms = 0
        self._warm_programs: dict[str, tuple[str, int]] = {}
        self._delay_factor = 1.0
        self.block = self.engines[0].config.block_size
        if oracle is not None:
            oracle.gap_of = self._true_gap
            oracle.steps_left_of = self._true_steps_left
            oracle.output_of = lambda step: float(self._steps[step][1].output_tokens)

    # -- the loop

    def run(self, progress: Callable[[int], None] | None = None) -> Result:
        """Until every program is over."""
        for index in range(len(self.engines)):
            self._tell(ev.EngineBack(engine=self._engine_ids[index]))
            self._report(index)
        self._start_roots()
        for fault in self.faults:
            self._at(fault.at_s, self._strike, fault)
        if self.sample_every_s:
            self._at(0.0, self._sample)
        reported = 0
        heap = self._heap
        while heap:
            when, _, what, args = heapq.heappop(heap)
            self.now = max(self.now, when)
            what(*args)
            if progress is not None and len(self.result.programs) > reported:
                reported = len(self.result.programs)
                progress(reported)
            if self._over():
                break
        if not self._over():
            raise AgentServeError(
                f"the world stopped at {self.now:.1f} s with {len(self._live)} programs unfinished",
                remedy="this is a bug of the policy: a step was lost or held for ever",
            )
        self.result.ended_at = self.now
        for engine in self.engines:
            stats = engine.stats(self.now)
            self.result.kv_running_token_s += stats.running_token_s
            self.result.kv_idle_token_s += stats.idle_token_s
            self.result.kv_capacity_token_s += engine.kv_tokens * self.now
        return self.result

    def _over(self) -> bool:
        done = len(self.result.programs) == len(self.workload.programs)
        return done or self.now > self.until_s

    def _at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, what, args))

    # -- clients

    def _start_roots(self) -> None:
        if self.concurrency is None:
            for index in self._roots:
                plan = self.workload.programs[index]
                self._at(plan.arrives_s or 0.0, self._start, index, None)
            return
        for _ in range(self.concurrency):
            self._start_next_root()

    def _start_next_root(self) -> None:
        index = next(self._roots, None)
        if index is not None:
            self._at(self.now, self._start, index, None)

    def _start(self, index: int, parent: int | None) -> None:
        plan = self.workload.programs[index]
        live = Live(
            index=index,
            plan=plan,
            text=Text(plan, self.block),
            started_at=self.now,
            waiting_parent=parent,
        )
        self._live[index] = live
        self._send(live)

    def _send(self, live: Live) -> None:
        """The client sends the program's next step."""
        plan = live.plan
        step = plan.steps[live.next_step]
        before = live.text.tokens
        if live.attempt == 0:
            live.text.prompt(step)
        fresh = live.text.tokens - before if live.next_step and step.contents is None else live.text.tokens
        step_id = StepId(f"{plan.id}/{live.next_step}" + (f"r{live.attempt}" if live.attempt else ""))
        trace = StepTrace(program=live.index, index=live.next_step, sent_at=self.now)
        trace.prompt = live.text.tokens
        trace.fresh = max(fresh, 0)
        self._steps[step_id] = (live, step, trace)
        event = ev.StepArrived(
            step=step_id,
            program=ProgramId(plan.id),
            tenant=TenantId(plan.tenant),
            prompt_tokens=live.text.tokens,
            prefix=live.text.segments(step),
            workflow=WorkflowId(plan.workflow) if plan.workflow else None,
            role=step.role or plan.role,
            parent=None if plan.parent is None else ProgramId(self.workload.programs[plan.parent].id),
            relation="compaction" if step.compact_to is not None else "continues",
            node=step.node,
            priority=plan.priority,
            deadline_s=plan.deadline_s if live.next_step == 0 else None,
            tools_offered=plan.tools_offered,
            returned=live.returned,
            human=live.next_step > 0 and plan.steps[live.next_step - 1].human,
        )
        self._at(self.now + self._client_delay(), self._tell, event)

    def _answered(self, step_id: str) -> None:
        """The client has the whole reply: it runs its tools, or is done."""
        live, step, trace = self._steps.pop(step_id)
        self.result.steps.append(trace)
        live.attempt = 0
        if step.contents is None:
            live.text.answered(step)
        live.next_step += 1
        live.returned = tuple(f"{step_id}.{k}" for k in range(len(step.tools)))
        live.ready_at = self.now + step.gap_s
        if live.next_step == len(live.plan.steps):
            self._finish(live)
            return
        live.open_children = len(step.children)
        for child in step.children:
            self._at(self.now, self._start, child, live.index)
        if not step.children:
            self._at(live.ready_at, self._send, live)

    def _finish(self, live: Live) -> None:
        del self._live[live.index]
        self.result.programs.append(
            ProgramTrace(index=live.index, started_at=live.started_at, ended_at=self.now)
        )
        if live.waiting_parent is not None:
            parent = self._live[live.waiting_parent]
            parent.open_children -= 1
            if parent.open_children == 0:
                self._at(max(self.now, parent.ready_at), self._send, parent)
        elif self.concurrency is not None:
            self._start_next_root()

    def _again(self, step_id: str) -> None:
        """The client got an error: it sends the step anew after a second, as SDKs do."""
        live, _, trace = self._steps.pop(step_id)
        trace.ok = False
        trace.ended_at = self.now
        self.result.steps.append(trace)
        live.attempt += 1
        self._at(self.now + 1.0, self._send, live)

    # -- the scheduler

    def _tell(self, event: ev.AnyEvent) -> None:
        decided = self.scheduler.handle(event, self.now)
        for decision in decided:
            self._carry_out(decision)
        if self.check:
            self.scheduler.check()
        deadline = self.scheduler.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer - 1e-9):
            self._timer = max(deadline, self.now)
            self._at(self._timer, self._fire, self._timer)

    def _fire(self, due: float) -> None:
        if self._timer == due:
            self._timer = None
            self._tell(ev.TimerFired())

    def _carry_out(self, decision: do.AnyDecision) -> None:
        kind = type(decision).__name__
        counts = self.result.decisions
        label = f"{kind}:{decision.reason}"
        counts[label] = counts.get(label, 0) + 1
        if isinstance(decision, do.Dispatch):
            _, _, trace = self._steps[decision.step]
            trace.dispatched_at = self.now
            trace.engine = self._engine_ids.index(decision.engine)
            self._at(
                self.now + self._engine_delay(), self._submit, decision.step, trace.engine, decision.priority
            )
        elif isinstance(decision, do.Reject):
            self.result.rejected += 1
            self._at(self.now + self._client_delay(), self._again, decision.step)
        elif isinstance(decision, do.Warm):
            self._warm(decision)
        elif isinstance(decision, (do.Pin, do.Unpin)):
            self._pin(decision)
        elif isinstance(decision, do.Abort):
            index = self._engine_ids.index(decision.engine)
            self._advance(index)
            self.engines[index].abort(decision.step, self.now)
            self._rearm(index)

    def _pin(self, decision: do.Pin | do.Unpin) -> None:
        """Only an engine with pins of its own has to be told; elsewhere a pin is room that is left."""
        live = self._live.get(self._index_of.get(decision.program, -1))
        if not self.native_pins or live is None or decision.engine not in self._engine_ids:
            return
        index = self._engine_ids.index(decision.engine)
        self._advance(index)
        if isinstance(decision, do.Unpin):
            self.engines[index].unpin(decision.program, self.now)
        elif decision.mode == "native":
            hashes = live.text.hashes(StepPlan(new_tokens=0, output_tokens=0))
            held = self.engines[index].pin(decision.program, hashes, decision.until, self.now)
            done = ev.DecisionDone(
                decision="Pin",
                program=ProgramId(decision.program),
                engine=decision.engine,
                outcome="accepted" if held * 2 >= decision.tokens else "clipped",
            )
            self._at(self.now + self._engine_delay(), self._tell, done)
        self._rearm(index)

    def _warm(self, decision: do.Warm) -> None:
        """A one-token request on the program's prefix: it refreshes what is there and restores what is not."""
        live = self._live.get(self._index_of.get(decision.program, -1))
        if live is None or not live.next_step or decision.engine not in self._engine_ids:
            return
        index = self._engine_ids.index(decision.engine)
        step = live.plan.steps[live.next_step - 1]
        if step.contents is not None or live.text.tokens < self.block:
            return
        self._warms += 1
        self.result.warms += 1
        name = f"warm:{self._warms}"
        hashes = live.text.hashes(StepPlan(new_tokens=0, output_tokens=0))
        request = EngineRequest(
            id=name,
            hashes=hashes,
            prompt_tokens=live.text.tokens,
            output_tokens=1,
            priority=WARM_PRIORITY,
        )
        self._warm_programs[name] = (decision.program, live.text.tokens)
        self._at(self.now + self._engine_delay(), self._submit_request, index, request)

    # -- engines

    def _submit(self, step_id: str, index: int, priority: int) -> None:
        entry = self._steps.get(step_id)
        if entry is None:
            return
        live, step, trace = entry
        if trace.engine != index:
            return  # re-dispatched elsewhere meanwhile
        request = EngineRequest(
            id=step_id,
            hashes=live.text.hashes(step),
            prompt_tokens=live.text.tokens,
            output_tokens=step.output_tokens,
            priority=priority,
        )
        self._submit_request(index, request)

    def _submit_request(self, index: int, request: EngineRequest) -> None:
        if not self.scheduler.board.fleet[self._engine_ids[index]].up:
            if request.id in self._steps:
                self._failed(request.id, retryable=True)
            return
        self._advance(index)
        self.engines[index].submit(request, self.now)
        self._rearm(index)

    def _wake_engine(self, index: int, due: float) -> None:
        if self._wake[index] != due:
            return
        self._wake[index] = None
        self._advance(index)
        self._rearm(index)

    def _advance(self, index: int) -> None:
        for event in self.engines[index].advance(self.now):
            self._engine_said(index, event)

    def _rearm(self, index: int) -> None:
        due = self.engines[index].next_event()
        if due is not None and self._wake[index] != due:
            self._wake[index] = due
            self._at(due, self._wake_engine, index, due)

    def _engine_said(self, index: int, event: object) -> None:
        if isinstance(event, FirstToken):
            entry = self._steps.get(event.id)
            if entry is not None:
                entry[2].first_at = event.at + self._engine_delay() + self._client_delay()
                self._at(event.at + self._engine_delay(), self._tell, ev.StepStarted(step=StepId(event.id)))
        elif isinstance(event, RequestStarted):
            entry = self._steps.get(event.id)
            if entry is not None:
                entry[2].started_at = event.at
        elif isinstance(event, RequestFinished):
            self._engine_finished(index, event)
        elif isinstance(event, RequestRejected) and event.id in self._steps:
            self._give_up(event.id)

    def _engine_finished(self, index: int, event: RequestFinished) -> None:
        warm = self._warm_programs.pop(event.id, None)
        if warm is not None:
            program, tokens = warm
            if event.cached_tokens * 2 >= tokens:
                self.result.warm_hits += 1
            done = ev.DecisionDone(
                decision="Warm",
                program=ProgramId(program),
                engine=self._engine_ids[index],
                outcome="accepted",
                cached_tokens=event.cached_tokens,
            )
            self._at(event.at + self._engine_delay(), self._tell, done)
            return
        entry = self._steps.get(event.id)
        if entry is None:
            return
        live, step, trace = entry
        trace.cached = event.cached_tokens
        trace.output = event.output_tokens
        trace.ended_at = event.at + self._engine_delay() + self._client_delay()
        last = live.next_step == len(live.plan.steps) - 1
        finished = ev.StepFinished(
            step=StepId(event.id),
            prompt_tokens=event.prompt_tokens,
            output_tokens=event.output_tokens,
            cached_tokens=event.cached_tokens,
            tools=tuple(
                ev.PendingTool(
                    id=f"{event.id}.{k}", name=t.name, argument_class=t.argument_class, kind=t.kind
                )
                for k, t in enumerate(step.tools)
            ),
            turn_done=not step.tools and not step.children,
            final=last,
        )
        at = event.at + self._engine_delay()
        self._at(at, self._tell, finished)
        self._at(at + self._client_delay(), self._answered, event.id)

    def _failed(self, step_id: str, *, retryable: bool) -> None:
        self.result.failed += 1
        known = self.scheduler.board.steps.get(StepId(step_id))
        retries = known.retries if known is not None else 1
        self._tell(ev.StepFailed(step=StepId(step_id), reason="engine", retryable=retryable))
        if not retryable or retries:
            self._at(self.now + self._client_delay(), self._again, step_id)

    def _give_up(self, step_id: str) -> None:
        """No engine can hold it: sending it again is of no use, so the program ends here."""
        live, _, trace = self._steps.pop(step_id)
        self.result.failed += 1
        self.result.unservable += 1
        trace.ok = False
        trace.ended_at = self.now
        self.result.steps.append(trace)
        self._tell(ev.StepFailed(step=StepId(step_id), reason="too_long"))
        self._tell(ev.ProgramEnded(program=ProgramId(live.plan.id)))
        self._finish(live)

    def _report(self, index: int, kv_tokens: int | None = None) -> None:
        engine = self.engines[index]
        self._tell(
            ev.EngineReported(
                engine=self._engine_ids[index],
                kv_tokens=kv_tokens if kv_tokens is not None else engine.kv_tokens,
                seqs_max=engine.config.max_num_seqs,
                prefill_tokens_per_s=engine.profile.prefill_tokens_per_s(),
                pins_natively=self.native_pins,
                decode_tokens_per_s=1.0 / engine.profile.decode_step_s(1, 0),
            )
        )

    # -- faults

    def _strike(self, fault: Fault) -> None:
        index = fault.engine % len(self.engines)
        engine = self.engines[index]
        if fault.kind == "crash":
            self._advance(index)
            lost = engine.crash(self.now)
            self._wake[index] = None
            self._tell(ev.EngineLost(engine=self._engine_ids[index], reason="crash"))
            for step_id in lost:
                if step_id in self._warm_programs:
                    del self._warm_programs[step_id]
                elif step_id in self._steps:
                    board = self.scheduler.board
                    known = board.steps.get(StepId(step_id))
                    if known is not None and known.engine == self._engine_ids[index] and known.in_flight:
                        self._failed(step_id, retryable=False)
            self._at(self.now + fault.seconds, self._recover, index)
        elif fault.kind == "stall":
            self._advance(index)
            engine.stall(self.now + fault.seconds)
            self._rearm(index)
        elif fault.kind == "slow_network":
            self._delay_factor = fault.factor
            self._at(self.now + fault.seconds, self._calm)
        elif fault.kind == "wrong_metrics":
            self._report(index, kv_tokens=int(engine.kv_tokens * fault.factor))
            self._at(self.now + fault.seconds, self._report, index)

    def _recover(self, index: int) -> None:
        self._tell(ev.EngineBack(engine=self._engine_ids[index]))
        self._report(index)

    def _calm(self) -> None:
        self._delay_factor = 1.0

    def _client_delay(self) -> float:
        return self.network.client_s * self._delay_factor

    def _engine_delay(self) -> float:
        return self.network.engine_s * self._delay_factor

    # -- looking on

    def _sample(self) -> None:
        row = []
        for index, engine in enumerate(self.engines):
            self._advance(index)
            self._rearm(index)
            use = engine.kv_use()
            row.append((use.running_tokens, use.idle_tokens, use.blank_tokens))
        self.result.samples.append((self.now, row))
        self._at(self.now + self.sample_every_s, self._sample)

    def _true_gap(self, program: str) -> float:
        live = self._live.get(self._index_of[program])
        if live is None:
            return 0.0
        # asked when the step's reply passes the gateway: the client has not answered yet
        return live.plan.steps[min(live.next_step, len(live.plan.steps) - 1)].gap_s

    def _true_steps_left(self, program: str) -> float:
        live = self._live.get(self._index_of[program])
        return 1.0 if live is None else float(len(live.plan.steps) - live.next_step)
