"""Session affinity: a program stays on the engine of its first step.

Intent: keep a program's KV where its next step comes. What most routers offer as sticky routing.
Reads: the program's home; for a fresh program, how many live programs each engine is home to.
Loses: when the programs' contexts together exceed an engine's KV. Nothing is held back, so they evict each
other in turn, every step prefills anew, and throughput falls the more programs there are.
"""

from __future__ import annotations

from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId
from agentserve.core.policies.policy import Placing
from agentserve.core.program import Program, Step


class Affinity(Placing):
    """Home engine for ever; a fresh program goes where the fewest live."""

    name = "affinity"
    reason = "home"

    def setup(self) -> None:
        self._residents: dict[EngineId, int] = {}

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        program = step.program
        home = next((e for e in engines if e.id == program.own), None)
        if home is None:
            home = min(engines, key=lambda e: (self._residents.get(e.id, 0) / e.speed, len(e.steps), e.id))
            self._leave(program)
            program.own = home.id
            self._residents[home.id] = self._residents.get(home.id, 0) + 1
        return home

    def ended(self, program: Program, now: float) -> None:
        self._leave(program)

    def _leave(self, program: Program) -> None:
        if program.own is not None:
            self._residents[program.own] -= 1
            program.own = None
