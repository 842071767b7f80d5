"""PLAS (Autellix): least attained service, counted over the whole program.

Intent: end head-of-line blocking by long calls and by long programs, without knowing either's length.
Reads: seconds that the program's finished calls ran, and that they waited; prompt lengths.

A step's priority is the sum of the runtimes of its program's finished calls. It sets one of `levels` queues, of which
each holds `growth` times the service of the one before; in a queue, first come first served. A step goes to the first
queue when `(W_p + W_c) / (T_p + T_c) >= beta`: waited over served, of the program and the call. Prompts of at most
2048 tokens go to the least used engine, longer ones to their program's.

Loses: young programs push old ones, whose contexts are the longest, out of the memory, so they prefill the most again.
Equal programs are all finished late (they take turns), where first come first served would end some early.

Departs: a call is not moved to a lower queue, nor preempted, while it runs: the proxy holds it only before. `beta`,
the quanta and the number of queues are not published; these are ours to tune. Sub-agents count to their root.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentserve.core.fleet import Engine
from agentserve.core.ids import StepId
from agentserve.core.policies.literature.bays import Standing
from agentserve.core.policies.literature.lines import Key, Timers
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.policies.policy import least_loaded
from agentserve.core.program import Program, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class PlasParams(QueueingParams):
    """`short_tokens` is the paper's."""

    levels: int = 8
    quantum_s: float = 2.0  # service in the first queue
    growth: float = 2.0
    beta: float = 4.0
    short_tokens: int = 2048


@dataclass(slots=True, eq=False)
class Service:
    """What a program and its sub-agents were given, and how long they stood in line for it."""

    served_s: float = 0.0
    waited_s: float = 0.0


@dataclass(slots=True, eq=False)
class Attained(Standing):
    """A program's service; `path_s` is its longest path of calls (for ATLAS)."""

    service: Service = field(default_factory=Service)
    path_s: float = 0.0


class Plas(Queueing):
    """Program-level attained service."""

    name = "plas"
    reason = "least_attained"
    Params = PlasParams
    params: PlasParams

    def setup(self) -> None:
        super().setup()
        self._starving = Timers()  # when each waiting step has starved

    def own(self, program: Program) -> Attained:
        if program.own is None:
            program.own = Attained()
            parent = self.board.programs.get(program.parent) if program.parent is not None else None
            if parent is not None and isinstance(parent.own, Attained):
                program.own.service = parent.own.service
                program.own.path_s = parent.own.path_s
        standing: Attained = program.own
        return standing

    def attained_s(self, step: Step) -> float:
        """The service that sets the queue."""
        return self.own(step.program).service.served_s

    def level(self, attained_s: float) -> int:
        bound = self.params.quantum_s
        for level in range(self.params.levels - 1):
            if attained_s < bound:
                return level
            bound *= self.params.growth
        return self.params.levels - 1

    def key(self, step: Step, now: float) -> Key:
        if now >= self._starves_at(step):
            return (0, step.arrived_at)
        return (self.level(self.attained_s(step)), step.arrived_at)

    def _starves_at(self, step: Step) -> float:
        """When its waiting has reached `beta` times its service."""
        service = self.own(step.program).service
        return step.arrived_at + self.params.beta * service.served_s - service.waited_s

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        if step.prompt_tokens <= self.params.short_tokens:
            return least_loaded(engines)
        return super().place(step, engines, now)

    def returned(self, step: Step, now: float) -> None:
        if self.level(self.attained_s(step)):
            self._starving.set(step.id, max(self._starves_at(step), now))

    def going(self, step: Step, engine: Engine, now: float) -> None:
        self._starving.drop(step.id)
        self.own(step.program).service.waited_s += now - step.arrived_at

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        self._starving.drop(step.id)
        if engine is not None and step.dispatched_at is not None:
            self.own(step.program).service.served_s += now - step.dispatched_at

    def epoch(self, now: float) -> None:
        while (due := self._starving.first()) is not None and due <= now:
            step = self.board.waiting.get(StepId(self._starving.take()))
            if step is not None and step.id in self._line_of:
                self.rekey(step, now)

    def wake(self) -> float | None:
        return self._starving.first()
