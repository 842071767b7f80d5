"""Llumnix at turn boundaries: dispatch to the freest engine, and move programs from the least free to the freest.

Intent: level load and make room for the important, by how many more iterations an engine can go on.
Reads: footprints of steps in flight, their number, priority classes.

Freeness of an engine is `(M - sum of virtual usages) / B`: KV tokens left for each running step, that is iterations
until the memory is full. Virtual usage is a step's footprint; a step of class interactive has headroom on top, so that
its engine looks fuller. A fresh program goes to the freest engine. A program that returns to an engine whose freeness
is below `out_below` moves to the freest if that is above `in_above`.

Loses: it moves KV that a stock engine cannot move: each move prefills the context anew, so that moving under pressure
feeds the pressure. Idle KV counts for nothing.

Departs: no live migration; the boundary between steps is where a program can move. Of unequal engines freeness is times
their speed. Queueing is the engine's, so the demand of its queue's head is in the sum already. The thresholds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.fleet import Engine
from agentserve.core.policies.policy import Placing
from agentserve.core.program import Program, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class LlumnixParams:
    """Thresholds are in iterations: tokens that each running step may still write."""

    out_below: float = 0.0
    in_above: float = 2000.0
    headroom_tokens: int = 20_000  # for steps of class interactive


class Llumnix(Placing):
    """Freeness, and migration at turn boundaries."""

    name = "llumnix"
    reason = "freest"
    Params = LlumnixParams
    params: LlumnixParams

    def setup(self) -> None:
        self._moves = 0.0

    def freeness(self, engine: Engine) -> float:
        used = engine.in_flight_tokens
        for step in engine.steps.values():
            if step.program.priority == "interactive":
                used += self.params.headroom_tokens
        return (engine.kv_tokens - used) * engine.speed / max(len(engine.steps), 1)

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        program = step.program
        free = {e.id: self.freeness(e) for e in engines}
        freest = min(engines, key=lambda e: (-free[e.id], len(e.steps), e.id))
        home = next((e for e in engines if e.id == program.own), None)
        if home is None:
            home = freest
        elif free[home.id] < self.params.out_below and free[freest.id] > self.params.in_above:
            home = freest
            self._moves += 1
        program.own = home.id
        return home

    def priority(self, step: Step, now: float) -> int:
        return 0 if step.program.priority == "interactive" else 1

    def ended(self, program: Program, now: float) -> None:
        program.own = None

    def figures(self) -> dict[str, float]:
        return {"moved": self._moves}
