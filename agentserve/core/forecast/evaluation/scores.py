"""Scores forecasts of durations against what came: proper scores in log-seconds, coverage, and the cost of TTLs.

One rule: every forecaster is scored by the same code on the same outcomes. It does not know who made a forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from statistics import median

from agentserve.core.forecast.calibration import pinball
from agentserve.core.forecast.grid import Grid
from agentserve.core.forecast.survival import Survival

BREAK_EVENS_S = (0.5, 2.0, 5.0, 15.0, 60.0)
QUANTILES = (0.5, 0.9, 0.99)
# Where coverage is counted for the calibration plot.
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def crps(forecast: Survival, seconds: float) -> float:
    """The continuous ranked probability score in log-seconds: the area between the forecast and the outcome."""
    grid = forecast.grid
    y = min(max(math.log(max(seconds, 1e-12)), grid.log_edges[0]), grid.log_edges[-1])
    below = list(accumulate(forecast.masses, initial=0.0))
    place, part = grid.position(math.exp(y))
    area = 0.0
    for i in range(grid.bins):
        a, b = below[i], below[i + 1]
        width = grid.log_edges[i + 1] - grid.log_edges[i]
        if i < place:
            area += width * (a * a + a * b + b * b) / 3
        elif i > place:
            a, b = 1 - a, 1 - b
            area += width * (a * a + a * b + b * b) / 3
        else:
            m = a + part * (b - a)
            area += part * width * (a * a + a * m + m * m) / 3
            area += (1 - part) * width * ((1 - m) ** 2 + (1 - m) * (1 - b) + (1 - b) ** 2) / 3
    return area


@dataclass(slots=True)
class Accuracy:
    """How well one forecaster foretold durations."""

    grid: Grid
    outcomes: int = 0
    _crps: float = 0.0
    _errors: list[float] = field(default_factory=list)
    _loss: dict[float, float] = field(default_factory=lambda: dict.fromkeys(QUANTILES, 0.0))
    _covered: dict[float, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))

    def add(self, forecast: Survival, seconds: float) -> None:
        self.outcomes += 1
        self._crps += crps(forecast, seconds)
        y = self._log(seconds)
        for q in LEVELS:
            x = self._log(forecast.quantile(q))
            self._covered[q] += y <= x
            if q in self._loss:
                self._loss[q] += pinball(q, x, y)
            if q == 0.5:
                self._errors.append(abs(y - x))

    def add_point(self, value: float, seconds: float) -> None:
        """One that names a single number; it is scored as a forecast without any spread."""
        self.outcomes += 1
        x, y = self._log(value), self._log(seconds)
        self._crps += abs(y - x)
        self._errors.append(abs(y - x))
        for q in LEVELS:
            self._covered[q] += y <= x
            if q in self._loss:
                self._loss[q] += pinball(q, x, y)

    def _log(self, seconds: float) -> float:
        return math.log(min(max(seconds, self.grid.low), self.grid.edges[-1]))

    def numbers(self) -> dict[str, float]:
        n = max(self.outcomes, 1)
        return {
            "outcomes": self.outcomes,
            "crps": self._crps / n,
            "median_ln_error": median(self._errors) if self._errors else math.nan,
            **{f"pinball_p{100 * q:g}": loss / n for q, loss in self._loss.items()},
            **{f"coverage_p{100 * q:g}": self._covered[q] / n for q in QUANTILES},
        }

    def calibration(self) -> list[tuple[float, float]]:
        """(promised, kept) for each level."""
        return [(q, covered / max(self.outcomes, 1)) for q, covered in self._covered.items()]


@dataclass(slots=True)
class Cost:
    """What a choice of TTLs cost at one break-even time, in seconds of holding."""

    break_even_s: float
    held_s: float = 0.0
    misses: int = 0
    hits: int = 0
    least_s: float = 0.0  # what one who knew the future would have paid

    def add(self, ttl_s: float, seconds: float) -> None:
        self.held_s += min(ttl_s, seconds)
        if seconds <= ttl_s:
            self.hits += 1
        else:
            self.misses += 1
        self.least_s += min(seconds, self.break_even_s)

    @property
    def regret(self) -> float:
        """The cost above the clairvoyant one's, relative to it."""
        if not self.least_s:
            return 0.0
        return (self.held_s + self.break_even_s * self.misses) / self.least_s - 1.0

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)


@dataclass(slots=True)
class Costs:
    """The cost of one way to choose TTLs, over all break-even times."""

    by: dict[float, Cost] = field(default_factory=lambda: {m: Cost(m) for m in BREAK_EVENS_S})

    def add(self, choose: Callable[[float], float], seconds: float) -> None:
        for break_even_s, cost in self.by.items():
            cost.add(choose(break_even_s), seconds)

    def numbers(self) -> dict[str, dict[str, float]]:
        return {
            f"{m:g}": {"regret": c.regret, "held_s": c.held_s, "hit_rate": c.hit_rate}
            for m, c in self.by.items()
        }


class Frontier:
    """Hits against time held, traced by choosing for a range of break-even times."""

    STEPS_S = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)

    def __init__(self) -> None:
        self._at = {m: Cost(m) for m in self.STEPS_S}

    def add(self, forecast: Survival, seconds: float) -> None:
        for m, cost in self._at.items():
            cost.add(forecast.best_ttl(m), seconds)

    def hit_rate(self, held_s: float) -> float:
        """The hits of choices that hold `held_s` in all, between the two nearest that were traced."""
        points = sorted((cost.held_s, cost.hit_rate) for cost in self._at.values())
        points.insert(0, (0.0, 0.0))
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 <= held_s <= x1:
                return y0 if x1 == x0 else y0 + (y1 - y0) * (held_s - x0) / (x1 - x0)
        return points[-1][1]
