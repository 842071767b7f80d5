"""What the scheduler asks of forecasts, whoever makes them: learned online, declared, or an oracle in simulation.

Rule: a forecast is advice. Everything that uses one must stay correct when it is wrong by any factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from agentserve.core.events import AnyEvent
from agentserve.core.program import Program, Step


class Survival(Protocol):
    """The distribution of a gap: how long until the program is back."""

    def survival(self, t: float) -> float:
        """P(gap > t), the mass that never returns included."""
        ...

    def course(self, elapsed: float, horizons: tuple[float, ...]) -> Sequence[float]:
        """P(gap > elapsed + horizon), by horizon."""
        ...

    def quantile(self, q: float) -> float: ...


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


class Pointwise:
    """A distribution that is as quickly asked for each point as for all."""

    __slots__ = ()

    def survival(self, t: float) -> float:
        raise NotImplementedError

    def course(self, elapsed: float, horizons: tuple[float, ...]) -> Sequence[float]:
        return [self.survival(elapsed + horizon) for horizon in horizons]


class Exponential(Pointwise):
    """A gap of which only the mean is known."""

    __slots__ = ("mean_s",)

    def __init__(self, mean_s: float) -> None:
        self.mean_s = max(mean_s, 1e-6)

    def survival(self, t: float) -> float:
        return math.exp(-t / self.mean_s)

    def quantile(self, q: float) -> float:
        return -self.mean_s * math.log(max(1.0 - q, 1e-12))


class Known(Pointwise):
    """A gap whose end is known."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def survival(self, t: float) -> float:
        return 1.0 if t < self.seconds else 0.0

    def quantile(self, q: float) -> float:
        return self.seconds


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


def keeping_pays(
    gap: Survival, elapsed: float, horizons: tuple[float, ...], *, fill_s: float, price: float
) -> bool:
    """Is the best rate of return over any horizon, times `fill_s`, at least the price?

    The rate is P(back within tau) / E[time held until then], both conditional on `elapsed` already gone: what a second
    of keeping buys at best, in returns. The first horizon that will do is enough.
    """
    alive = gap.survival(elapsed)
    if alive <= 1e-9:
        return fill_s / horizons[0] >= price
    held = 0.0
    before, at = 1.0, 0.0
    for tau, left in zip(horizons, gap.course(elapsed, horizons), strict=True):
        after = left / alive
        held += (tau - at) * (before + after) / 2
        if held > 0 and (1.0 - after) / held * fill_s >= price:
            return True
        before, at = after, tau
    return price <= 0.0
