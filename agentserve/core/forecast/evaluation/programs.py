"""Replays recorded programs and scores the forecast of their remaining steps at a few points of their lives.

One rule: the later programs are forecast from the earlier ones alone; what is learned stops at the split, so that
ours and the naive forecast know the same programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from agentserve.core.forecast.calls import text_hash
from agentserve.core.forecast.evaluation.rows import ProgramRow
from agentserve.core.forecast.remaining import Remaining, RemainingForecaster

STEPS = (1, 5, 10, 20)
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_TENANT = "-"


@dataclass(slots=True)
class AtStep:
    """Forecasts made after one number of steps."""

    errors: list[float] = field(default_factory=list)
    naive_errors: list[float] = field(default_factory=list)
    covered: dict[float, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))

    @property
    def gain(self) -> float:
        """By how much the mean |ln error| is below the naive one's, as a share of it."""
        return _gain(fmean(self.errors), fmean(self.naive_errors)) if self.errors else math.nan

    def numbers(self) -> dict[str, float]:
        n = max(1, len(self.errors))
        return {
            "programs": len(self.errors),
            "mean_ln_error": fmean(self.errors) if self.errors else math.nan,
            "median_ln_error": median(self.errors) if self.errors else math.nan,
            "naive_mean_ln_error": fmean(self.naive_errors) if self.naive_errors else math.nan,
            "gain": self.gain,
            **{f"coverage_p{100 * q:g}": covered / n for q, covered in self.covered.items()},
        }


@dataclass(slots=True)
class ProgramsReport:
    """The scores of one population of programs."""

    learned: int
    forecast: int
    at: dict[int, AtStep] = field(default_factory=lambda: {k: AtStep() for k in STEPS})

    @property
    def gain(self) -> float:
        """The gain over the naive forecast, each step counting alike."""
        scored = [at for at in self.at.values() if at.errors]
        if not scored:
            return math.nan
        return _gain(sum(fmean(at.errors) for at in scored), sum(fmean(at.naive_errors) for at in scored))

    def numbers(self) -> dict[str, Any]:
        return {
            "learned": self.learned,
            "forecast": self.forecast,
            "gain": self.gain,
            "at_step": {str(k): at.numbers() for k, at in self.at.items()},
        }


def _gain(error: float, naive: float) -> float:
    """Undefined where the naive forecast was never wrong."""
    return 1.0 - error / naive if naive > 0.0 else math.nan


def evaluate_programs(
    rows: Sequence[ProgramRow], *, learn_first: float = 0.6, told: Callable[[int], None] | None = None
) -> ProgramsReport:
    """Learn from the first programs (by time; by id where there is none) and forecast the others.

    Naive is the median of what was left of the learned programs that came as far.
    """
    roots = [row for row in rows if row.steps and not row.child]
    timed = all(row.at is not None for row in roots)
    roots.sort(key=lambda row: (row.at or 0.0, row.id) if timed else (0.0, row.id))
    split = int(len(roots) * learn_first)
    forecaster = RemainingForecaster()
    report = ProgramsReport(learned=split, forecast=len(roots) - split)
    lengths: list[int] = []
    for i, row in enumerate(roots):
        if i < split:
            _play(forecaster, row)
            forecaster.finish(tenant=_TENANT, program=row.id)
            lengths.append(len(row.steps))
        else:
            for k, said in _play(forecaster, row).items():
                _score(report.at[k], said, len(row.steps) - k, [n - k for n in lengths if n > k])
            forecaster.forget(tenant=_TENANT, program=row.id)
        if told is not None:
            told(i + 1)
    return report


def _play(forecaster: RemainingForecaster, row: ProgramRow) -> dict[int, Remaining]:
    """Tell the steps of a program in order; what was forecast after some of them, the last step excepted."""
    forecaster.begin(
        tenant=_TENANT,
        program=row.id,
        workflow=row.source,
        role=text_hash(row.model),
        system_tokens=row.system_tokens,
    )
    said = {}
    for done, facts in enumerate(row.steps, 1):
        forecaster.step(tenant=_TENANT, program=row.id, facts=facts)
        if done in STEPS and done < len(row.steps):
            forecast = forecaster.predict(tenant=_TENANT, program=row.id, continues=True)
            if forecast is not None:
                said[done] = forecast
    return said


def _score(at: AtStep, said: Remaining, left: int, known: Sequence[int]) -> None:
    if not known:
        return
    at.errors.append(abs(math.log(max(said.steps.quantile(0.5), 1.0) / left)))
    at.naive_errors.append(abs(math.log(median(known) / left)))
    for q in LEVELS:
        # Steps are whole: a forecast of 3.4 promises that three are covered.
        at.covered[q] += left <= round(said.steps.quantile(q))
