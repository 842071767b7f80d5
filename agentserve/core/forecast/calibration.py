"""Measures, all the time, whether forecasts kept what they promised, and whether they beat the naive ones.

One rule: constant memory and a few microseconds an outcome; figures are decayed, so they speak of lately. It
judges any forecast on any grid and does not know what was forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agentserve.core.forecast.survival import Survival

QUANTILES = (0.5, 0.9, 0.99)
_HALF_LIFE = 500.0
_DECAY = 2.0 ** (-1.0 / _HALF_LIFE)
# A running quantile moves by this much of a log unit for each outcome on the wrong side of it.
_NAIVE_STEP = 0.05


@dataclass(slots=True)
class _Running:
    """A decayed mean."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        self.total = self.total * _DECAY + value
        self.weight = self.weight * _DECAY + 1.0

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else math.nan


@dataclass(slots=True)
class Calibration:
    """Coverage and quantile loss of one kind of forecast, beside a running quantile that looks at nothing."""

    outcomes: int = 0
    _covered: dict[float, _Running] = field(default_factory=lambda: {q: _Running() for q in QUANTILES})
    _loss: dict[float, _Running] = field(default_factory=lambda: {q: _Running() for q in QUANTILES})
    _naive_loss: dict[float, _Running] = field(default_factory=lambda: {q: _Running() for q in QUANTILES})
    _naive: dict[float, float] = field(default_factory=dict)
    _error: _Running = field(default_factory=_Running)

    def observe(self, forecast: Survival, value: float) -> None:
        """`value` came of what `forecast` had said."""
        grid = forecast.grid
        y = math.log(min(max(value, grid.low), grid.high))
        self.outcomes += 1
        for q in QUANTILES:
            x = math.log(min(max(forecast.quantile(q), grid.low), grid.high))
            self._covered[q].add(float(y <= x))
            self._loss[q].add(pinball(q, x, y))
            if q == 0.5:
                self._error.add(abs(y - x))
            naive = self._naive.get(q)
            if naive is None:
                self._naive[q] = y
            else:
                self._naive_loss[q].add(pinball(q, naive, y))
                self._naive[q] = naive + _NAIVE_STEP * (q - (y <= naive)) * (1.0 + abs(y - naive))

    def numbers(self) -> dict[str, float]:
        """What is exported; empty until something was observed."""
        if not self.outcomes:
            return {}
        out = {"outcomes": float(self.outcomes), "ln_error": self._error.mean}
        for q in QUANTILES:
            name = f"p{100 * q:g}"
            out[f"coverage_{name}"] = self._covered[q].mean
            out[f"loss_{name}"] = self._loss[q].mean
            if self._naive_loss[q].weight:
                out[f"naive_loss_{name}"] = self._naive_loss[q].mean
        return out


def pinball(q: float, forecast: float, outcome: float) -> float:
    """The quantile loss: what is least, on average, at the true quantile."""
    return q * (outcome - forecast) if outcome >= forecast else (1.0 - q) * (forecast - outcome)
