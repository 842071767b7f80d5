"""Foresight that knows the plans: the bound for any forecaster, and the same with errors of a chosen size.

Rule: the error of a forecast is drawn once per program and quantity from a seeded generator, so that a run
with wrong forecasts repeats exactly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from agentserve.core.events import AnyEvent
from agentserve.core.foresight import Foresight, Known, Survival
from agentserve.core.program import Program, Step

# What a World tells an oracle: the plan's numbers for a live program.
GapOf = Callable[[str, int], float]  # behind which of its steps, the first being 0
StepsLeftOf = Callable[[str], float]
OutputOf = Callable[[str], float]


class Oracle:
    """Knows output lengths, gaps and remaining steps; each may be off by a log-normal factor or left to `fallback`."""

    def __init__(
        self,
        *,
        fallback: Foresight,
        seed: int = 0,
        lengths_error: float | None = 0.0,
        gaps_error: float | None = 0.0,
        outputs_error: float | None = 0.0,
        factor: float = 1.0,
    ) -> None:
        self._fallback = fallback
        self._seed = seed
        self._lengths = lengths_error
        self._gaps = gaps_error
        self._outputs = outputs_error
        self._factor = factor
        self.gap_of: GapOf = lambda _program, _step: 0.0
        self.steps_left_of: StepsLeftOf = lambda _: 1.0
        self.output_of: OutputOf = lambda _: 1.0

    def _off(self, what: str, name: str, error: float) -> float:
        if error == 0.0:
            return self._factor
        return self._factor * math.exp(error * random.Random(f"{self._seed}:{what}:{name}").gauss(0.0, 1.0))

    def learn(self, event: AnyEvent, program: Program | None, step: Step | None, now: float) -> None:
        self._fallback.learn(event, program, step, now)

    def settle(self) -> None:
        self._fallback.settle()

    def output_tokens(self, step: Step) -> float:
        if self._outputs is None:
            return self._fallback.output_tokens(step)
        return max(1.0, self.output_of(step.id) * self._off("output", step.id, self._outputs))

    def gap(self, program: Program, now: float) -> Survival:
        if self._gaps is None:
            return self._fallback.gap(program, now)
        error = self._off("gap", f"{program.id}:{program.steps_done}", self._gaps)
        return Known(self.gap_of(program.id, max(program.steps_done - 1, 0)) * error)

    def steps_left(self, program: Program) -> float:
        if self._lengths is None:
            return self._fallback.steps_left(program)
        return max(1.0, self.steps_left_of(program.id) * self._off("steps", program.id, self._lengths))
