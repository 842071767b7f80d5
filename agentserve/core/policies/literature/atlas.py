"""ATLAS (Autellix): attained service along the longest path of a program's calls.

Intent: PLAS for programs with parallel calls: what counts is the critical path, not the sum of its branches.
Reads: what PLAS reads, and which program is whose sub-agent.

A call's priority is the maximum over its parents of `their priority + their runtime`. As in Autellix that is kept as
one scalar a program: a call starts from it and lifts it when it ends; a sub-agent starts from its parent's and lifts
that when it is over. Queues, starvation and routing are PLAS's.

Loses: where PLAS does; and a program of many short parallel branches counts as young while it takes a whole engine.
Departs: as PLAS does.
"""

from __future__ import annotations

from agentserve.core.fleet import Engine
from agentserve.core.ids import StepId
from agentserve.core.policies.literature.plas import Attained, Plas
from agentserve.core.program import Program, Step


class Atlas(Plas):
    """Thread-level attained service: the longest path."""

    name = "atlas"

    def setup(self) -> None:
        super().setup()
        self._began: dict[StepId, float] = {}  # the priority of each call in flight

    def attained_s(self, step: Step) -> float:
        return self.own(step.program).path_s

    def going(self, step: Step, engine: Engine, now: float) -> None:
        super().going(step, engine, now)
        self._began[step.id] = self.own(step.program).path_s

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        super().over(step, now, finished=finished, engine=engine)
        began = self._began.pop(step.id, None)
        if began is not None and step.dispatched_at is not None:
            own = self.own(step.program)
            own.path_s = max(own.path_s, began + now - step.dispatched_at)

    def left(self, program: Program, now: float) -> None:
        parent = self.board.programs.get(program.parent) if program.parent is not None else None
        if parent is not None and isinstance(parent.own, Attained):
            parent.own.path_s = max(parent.own.path_s, self.own(program).path_s)
