"""The simulated world: clients that run programs, a network, engines, and the live scheduler between them.

Rule: nothing here waits or reads a clock, and equal seeds give equal runs, bit for bit. The world carries out decisions
just as the live driver does, and knows nothing of policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.scheduler import Scheduler
from agentserve.engine import EmulatedEngine
from agentserve.errors import AgentServeError
from agentserve.sim.agenda import Agenda, Network
from agentserve.sim.clients import Clients
from agentserve.sim.faults import Fault
from agentserve.sim.fleet import Fleet
from agentserve.sim.oracle import Oracle
from agentserve.sim.programs import Workload
from agentserve.sim.traces import Result


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
        ends_told: bool = True,
        until_s: float = 10_000_000.0,
    ) -> None:
        self.workload = workload
        self.scheduler = scheduler
        self.concurrency = concurrency
        self.faults = faults
        self.check = check
        self.sample_every_s = sample_every_s
        self.until_s = until_s
        self.result = Result()
        self.agenda = Agenda()
        network = replace(network or Network())
        self.clients = Clients(
            workload=workload,
            agenda=self.agenda,
            network=network,
            tell=self._tell,
            result=self.result,
            concurrency=concurrency,
            block=engines[0].config.block_size,
            ends_told=ends_told,
        )
        self.fleet = Fleet(
            engines=engines,
            clients=self.clients,
            scheduler=scheduler,
            agenda=self.agenda,
            network=network,
            tell=self._tell,
            result=self.result,
            native_pins=native_pins,
            ends_told=ends_told,
        )
        self._timer: float | None = None
        if oracle is not None:
            oracle.gap_of = self.clients.true_gap
            oracle.steps_left_of = self.clients.true_steps_left
            oracle.output_of = self.clients.true_output

    @property
    def now(self) -> float:
        return self.agenda.now

    @property
    def engines(self) -> Sequence[EmulatedEngine]:
        return self.fleet.engines

    def run(self, progress: Callable[[int], None] | None = None) -> Result:
        """Until every program is over."""
        agenda, programs = self.agenda, self.result.programs
        self.fleet.come_up()
        self.clients.start_roots()
        for fault in self.faults:
            agenda.at(fault.at_s, self.fleet.strike, fault)
        if self.sample_every_s:
            agenda.at(0.0, self._sample)
        reported = 0
        while agenda and not self._over():
            agenda.step()
            if progress is not None and len(programs) > reported:
                reported = len(programs)
                progress(reported)
        if not self._over():
            raise AgentServeError(
                f"the world stopped at {self.now:.1f} s with {len(self.clients.live)} programs unfinished",
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
        return len(self.result.programs) == len(self.workload.programs) or self.now > self.until_s

    def _sample(self) -> None:
        self.result.samples.append((self.now, self.fleet.sample()))
        self.agenda.at(self.now + self.sample_every_s, self._sample)

    # -- the scheduler

    def _tell(self, event: ev.AnyEvent) -> None:
        now = self.agenda.now
        for decision in self.scheduler.handle(event, now):
            self._carry_out(decision)
        if self.check:
            self.scheduler.check()
        deadline = self.scheduler.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer - 1e-9):
            self._timer = max(deadline, now)
            self.agenda.at(self._timer, self._fire, self._timer)

    def _fire(self, due: float) -> None:
        if self._timer == due:
            self._timer = None
            self._tell(ev.TimerFired())

    def _carry_out(self, decision: do.AnyDecision) -> None:
        counts = self.result.decisions
        label = f"{type(decision).__name__}:{decision.reason}"
        counts[label] = counts.get(label, 0) + 1
        if isinstance(decision, do.Dispatch):
            self.fleet.dispatch(decision)
        elif isinstance(decision, do.Reject):
            self.result.rejected += 1
            when = self.agenda.now + self.clients.network.to_client_s
            self.agenda.at(when, self.clients.again, decision.step)
        elif isinstance(decision, do.Warm):
            self.fleet.warm(decision)
        elif isinstance(decision, (do.Pin, do.Unpin)):
            self.fleet.pin(decision)
        elif isinstance(decision, do.Abort):
            self.fleet.abort(decision)
