"""What the scheduler asks of forecasts, whoever makes them: learned online, declared, or an oracle in simulation.

Rule: a forecast is advice. Everything that uses one must stay correct when it is wrong by any factor.
"""

from __future__ import annotations

import math
from typing import Protocol

from agentserve.core.events import AnyEvent
from agentserve.core.forecast.survival import Keeping
from agentserve.core.program import Program, Step


class Survival(Protocol):
    """The distribution of a gap: how long until the program is back."""

    def survival(self, t: float) -> float:
        """P(gap > t), the mass that never returns included."""
        ...

    def quantile(self, q: float, elapsed_s: float = 0.0) -> float:
        """By when, counted from the gap's start, a share `q` of those is back that are not after `elapsed_s`."""
        ...

    def keeping(self, break_even_s: float, cap_s: float, elapsed_s: float = 0.0) -> Keeping:
        """How long to keep what the return needs, `elapsed_s` into the gap, and at most for `cap_s` more.

        `break_even_s` of holding cost as much as one miss.
        """
        ...


class Foresight(Protocol):
    """Forecasts about programs, fed with the same events as the scheduler."""

    def learn(self, event: AnyEvent, program: Program | None, step: Step | None, now: float) -> None:
        """Told of each event after the scheduler's records were changed by it."""
        ...

    def settle(self) -> None:
        """Take in what was told: before the next event at the latest, and better once the decisions are carried out."""
        ...

    def output_tokens(self, step: Step) -> float:
        """How many tokens the step will write."""
        ...

    def gap(self, program: Program, now: float) -> Survival:
        """When the program comes back; asked once, when its gap begins."""
        ...

    def steps_left(self, program: Program) -> float:
        """How many steps the program still has to come; at least a fraction of one."""
        ...


class Exponential:
    """A gap of which only the mean is known."""

    __slots__ = ("mean_s",)

    def __init__(self, mean_s: float) -> None:
        self.mean_s = max(mean_s, 1e-6)

    def survival(self, t: float) -> float:
        return math.exp(-t / self.mean_s)

    def quantile(self, q: float, elapsed_s: float = 0.0) -> float:
        return elapsed_s - self.mean_s * math.log(max(1.0 - q, 1e-12))

    def keeping(self, break_even_s: float, cap_s: float, elapsed_s: float = 0.0) -> Keeping:
        """For good or not at all: how long it is away says nothing."""
        if self.mean_s > break_even_s or cap_s <= 0.0:
            return Keeping(0.0, 0.0, 0.0)
        back = 1.0 - math.exp(-cap_s / self.mean_s)
        return Keeping(cap_s, back, self.mean_s * back)


class Known:
    """A gap whose end is known."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def survival(self, t: float) -> float:
        return 1.0 if t < self.seconds else 0.0

    def quantile(self, q: float, elapsed_s: float = 0.0) -> float:
        return max(self.seconds, elapsed_s)

    def keeping(self, break_even_s: float, cap_s: float, elapsed_s: float = 0.0) -> Keeping:
        """To its end, and past it if it was foretold too short."""
        left = max(self.seconds - elapsed_s, 0.0)
        if left > min(break_even_s, cap_s):
            return Keeping(0.0, 0.0, 0.0)
        return Keeping(cap_s, 1.0, left)


class Naive:
    """The least that can be known: running means over all programs. The fallback when nothing better works."""

    def __init__(self) -> None:
        self.output_mean = 200.0
        self.gap_mean_s = 3.0
        self.steps_mean = 20.0

    def learn(self, event: AnyEvent, program: Program | None, step: Step | None, now: float) -> None:
        kind = type(event).__name__
        if kind == "StepArrived" and program is not None and program.gap_started_at is not None:
            self.gap_mean_s += 0.02 * (now - program.gap_started_at - self.gap_mean_s)
        elif kind == "StepFinished":
            self.output_mean += 0.01 * (event.output_tokens - self.output_mean)  # type: ignore[union-attr]
        elif kind == "ProgramEnded" and program is not None and program.steps_done:
            self.steps_mean += 0.02 * (program.steps_done - self.steps_mean)

    def settle(self) -> None:
        """Its means are taken at once."""

    def output_tokens(self, step: Step) -> float:
        limit = step.output_tokens_max
        return self.output_mean if limit is None else min(self.output_mean, float(limit))

    def gap(self, program: Program, now: float) -> Survival:
        return Exponential(self.gap_mean_s)

    def steps_left(self, program: Program) -> float:
        return max(self.steps_mean - program.steps_done, 1.0)
