"""The engines of a simulated world: they are given requests, say what became of them, and break when told to.

Rule: an engine is advanced to now before it is touched, and woken again when something is due in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.ids import EngineId, ProgramId, StepId
from agentserve.core.scheduler import Scheduler
from agentserve.engine import (
    EmulatedEngine,
    EngineEvent,
    EngineRequest,
    FirstToken,
    RequestFinished,
    RequestRejected,
    RequestStarted,
)
from agentserve.sim.agenda import Agenda, Network
from agentserve.sim.clients import Clients
from agentserve.sim.faults import Fault
from agentserve.sim.programs import StepPlan
from agentserve.sim.traces import Result

WARM_PRIORITY = 1 << 20


class Fleet:
    """Every engine of a world; `tell` is the way to the scheduler, which is asked which engines it holds to be up."""

    def __init__(
        self,
        *,
        engines: Sequence[EmulatedEngine],
        clients: Clients,
        scheduler: Scheduler,
        agenda: Agenda,
        network: Network,
        tell: Callable[[ev.AnyEvent], None],
        result: Result,
        native_pins: bool,
        ends_told: bool,
    ) -> None:
        self.engines = list(engines)
        self.ids = [EngineId(f"e{i}") for i in range(len(self.engines))]
        self.clients = clients
        self.scheduler = scheduler
        self.agenda = agenda
        self.network = network
        self.tell = tell
        self.result = result
        self.native_pins = native_pins
        self.ends_told = ends_told
        self._wake: list[float | None] = [None] * len(self.engines)
        self._warm_programs: dict[str, tuple[str, int]] = {}

    def come_up(self) -> None:
        """All of them, and what they hold."""
        for index in range(len(self.engines)):
            self._recover(index)

    # -- decisions

    def dispatch(self, decision: do.Dispatch) -> None:
        """A step goes to an engine, over the network."""
        _, _, trace = self.clients.steps[decision.step]
        trace.dispatched_at = self.agenda.now
        trace.engine = self.ids.index(decision.engine)
        when = self.agenda.now + self.network.to_engine_s
        self.agenda.at(when, self._submit_step, decision.step, trace.engine, decision.priority)

    def abort(self, decision: do.Abort) -> None:
        """Take a request off its engine."""
        index = self.ids.index(decision.engine)
        self._advance(index)
        self.engines[index].abort(decision.step, self.agenda.now)
        self._rearm(index)

    def pin(self, decision: do.Pin | do.Unpin) -> None:
        """Only an engine with pins of its own has to be told; elsewhere a pin is room that is left."""
        live = self.clients.program(decision.program)
        if not self.native_pins or live is None or decision.engine not in self.ids:
            return
        index = self.ids.index(decision.engine)
        now = self.agenda.now
        self._advance(index)
        if isinstance(decision, do.Unpin):
            self.engines[index].unpin(decision.program, now)
        elif decision.mode == "native":
            hashes = live.text.hashes(StepPlan(new_tokens=0, output_tokens=0))
            held = self.engines[index].pin(decision.program, hashes, decision.until, now)
            done = ev.DecisionDone(
                decision="Pin",
                program=ProgramId(decision.program),
                engine=decision.engine,
                outcome="accepted" if held * 2 >= decision.tokens else "clipped",
            )
            self.agenda.at(now + self.network.to_engine_s, self.tell, done)
        self._rearm(index)

    def warm(self, decision: do.Warm) -> None:
        """A one-token request on the program's prefix: it refreshes what is there and restores what is not."""
        live = self.clients.program(decision.program)
        if live is None or not live.next_step or decision.engine not in self.ids:
            return
        index = self.ids.index(decision.engine)
        step = live.plan.steps[live.next_step - 1]
        if live.text.tokens < live.text.block:
            return
        self.result.warms += 1
        name = f"warm:{self.result.warms}"
        request = EngineRequest(
            id=name,
            hashes=live.text.hashes(dataclasses.replace(step, output_tokens=0)),
            prompt_tokens=live.text.tokens,
            output_tokens=1,
            priority=WARM_PRIORITY,
        )
        self._warm_programs[name] = (decision.program, live.text.tokens)
        self.agenda.at(self.agenda.now + self.network.to_engine_s, self._submit, index, request)

    # -- requests

    def _submit_step(self, step_id: str, index: int, priority: int) -> None:
        entry = self.clients.steps.get(step_id)
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
        self._submit(index, request)

    def _submit(self, index: int, request: EngineRequest) -> None:
        if not self.scheduler.board.fleet[self.ids[index]].up:
            if request.id in self.clients.steps:
                self._failed(request.id, retryable=True)
            return
        self._advance(index)
        self.engines[index].submit(request, self.agenda.now)
        self._rearm(index)

    def _wake_engine(self, index: int, due: float) -> None:
        if self._wake[index] != due:
            return
        self._wake[index] = None
        self._advance(index)
        self._rearm(index)

    def _advance(self, index: int) -> None:
        for event in self.engines[index].advance(self.agenda.now):
            self._said(index, event)

    def _rearm(self, index: int) -> None:
        due = self.engines[index].next_event()
        if due is not None and self._wake[index] != due:
            self._wake[index] = due
            self.agenda.at(due, self._wake_engine, index, due)

    # -- what engines say

    def _said(self, index: int, event: EngineEvent) -> None:
        steps = self.clients.steps
        if isinstance(event, FirstToken):
            entry = steps.get(event.id)
            if entry is not None:
                to_gateway_s = self.network.to_engine_s
                entry[2].first_at = event.at + to_gateway_s + self.network.to_client_s
                self.agenda.at(event.at + to_gateway_s, self.tell, ev.StepStarted(step=StepId(event.id)))
        elif isinstance(event, RequestStarted):
            entry = steps.get(event.id)
            if entry is not None:
                entry[2].started_at = event.at
        elif isinstance(event, RequestFinished):
            if event.id in self._warm_programs:
                self._warmed(index, event)
            elif event.id in steps:
                self._finished(event)
        elif isinstance(event, RequestRejected) and event.id in steps:
            self.result.failed += 1
            self.clients.give_up(event.id)

    def _warmed(self, index: int, event: RequestFinished) -> None:
        program, tokens = self._warm_programs.pop(event.id)
        self.result.warm_restored_tokens += tokens - event.cached_tokens
        self.result.warm_refreshed_tokens += event.cached_tokens
        if event.cached_tokens * 2 >= tokens:
            self.result.warm_hits += 1
        done = ev.DecisionDone(
            decision="Warm",
            program=ProgramId(program),
            engine=self.ids[index],
            outcome="accepted",
            cached_tokens=event.cached_tokens,
        )
        self.agenda.at(event.at + self.network.to_engine_s, self.tell, done)

    def _finished(self, event: RequestFinished) -> None:
        live, step, trace = self.clients.steps[event.id]
        trace.cached = event.cached_tokens
        trace.output = event.output_tokens
        at = event.at + self.network.to_engine_s
        trace.ended_at = at + self.network.to_client_s
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
            # one that still waits for sub-agents is over later
            final=self.ends_told and live.next_step == len(live.plan.steps) - 1 and not step.children,
        )
        self.agenda.at(at, self.tell, finished)
        self.agenda.at(trace.ended_at, self.clients.answered, event.id)

    def _failed(self, step_id: str, *, retryable: bool) -> None:
        self.result.failed += 1
        known = self.scheduler.board.steps.get(StepId(step_id))
        retries = known.retries if known is not None else 1
        self.tell(ev.StepFailed(step=StepId(step_id), reason="engine", retryable=retryable))
        if not retryable or retries:
            self.agenda.at(self.agenda.now + self.network.to_client_s, self.clients.again, step_id)

    def _report(self, index: int, kv_tokens: int | None = None) -> None:
        engine = self.engines[index]
        self.tell(
            ev.EngineReported(
                engine=self.ids[index],
                kv_tokens=kv_tokens if kv_tokens is not None else engine.kv_tokens,
                seqs_max=engine.config.max_num_seqs,
                prefill_tokens_per_s=engine.profile.prefill_tokens_per_s(),
                pins_natively=self.native_pins,
                decode_tokens_per_s=1.0 / engine.profile.decode_step_s(1, 0),
            )
        )

    # -- faults

    def strike(self, fault: Fault) -> None:
        """Break what the fault says, and enter its end."""
        index = fault.engine % len(self.engines)
        now = self.agenda.now
        over = now + fault.seconds
        if fault.kind == "crash":
            self._crash(index)
            self.agenda.at(over, self._recover, index)
        elif fault.kind == "stall":
            self._advance(index)
            self.engines[index].stall(over)
            self._rearm(index)
        elif fault.kind == "slow_network":
            self.network.factor = fault.factor
            self.agenda.at(over, self._calm)
        elif fault.kind == "wrong_metrics":
            self._report(index, kv_tokens=int(self.engines[index].kv_tokens * fault.factor))
            self.agenda.at(over, self._report, index)

    def _crash(self, index: int) -> None:
        self._advance(index)
        lost = self.engines[index].crash(self.agenda.now)
        self._wake[index] = None
        self.tell(ev.EngineLost(engine=self.ids[index], reason="crash"))
        for name in lost:
            if name in self._warm_programs:
                del self._warm_programs[name]
            elif name in self.clients.steps:
                known = self.scheduler.board.steps.get(StepId(name))
                if known is not None and known.engine == self.ids[index] and known.in_flight:
                    self._failed(name, retryable=False)

    def _recover(self, index: int) -> None:
        self.tell(ev.EngineBack(engine=self.ids[index]))
        self._report(index)

    def _calm(self) -> None:
        self.network.factor = 1.0

    # -- looking on

    def sample(self) -> list[tuple[int, int, int]]:
        """KV tokens of each engine: of running steps, kept, blank."""
        row = []
        for index, engine in enumerate(self.engines):
            self._advance(index)
            self._rearm(index)
            use = engine.kv_use()
            row.append((use.running_tokens, use.idle_tokens, use.blank_tokens))
        return row
