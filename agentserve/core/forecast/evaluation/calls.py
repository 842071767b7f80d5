"""Replays recorded tool calls in time order and scores every forecaster on the later ones.

One rule: a call is forecast when it was emitted, from calls that had ended by then and no others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentserve.core.forecast.evaluation.baselines import Continuum, LogNormal, Mean, Quantiles
from agentserve.core.forecast.evaluation.rows import CallRow
from agentserve.core.forecast.evaluation.scores import BREAK_EVENS_S, Accuracy, Costs, Frontier
from agentserve.core.forecast.grid import TOOL_SECONDS
from agentserve.core.forecast.survival import Survival
from agentserve.core.forecast.tools import ToolForecaster

OURS = "agentserve"
_KEPT_LONG_S = 300.0
_TOOLS_SHOWN_MAX = 200


@dataclass(slots=True)
class Report:
    """The scores of all forecasters, and of ours by tool."""

    scored: int = 0
    censored: int = 0
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    costs: dict[str, Costs] = field(default_factory=dict)
    frontier: Frontier = field(default_factory=Frontier)
    tools: dict[str, tuple[Accuracy, Costs]] = field(default_factory=dict)
    curves: dict[str, tuple[Survival, list[float]]] = field(
        default_factory=dict
    )  # the last forecast, the outcomes

    def equal_memory(self, rule: str, break_even_s: float) -> tuple[float, float]:
        """A rule's hit rate, and ours when choices hold as much in all."""
        cost = self.costs[rule].by[break_even_s]
        return cost.hit_rate, self.frontier.hit_rate(cost.held_s)

    def numbers(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "scored": self.scored,
            "censored": self.censored,
            "accuracy": {name: accuracy.numbers() for name, accuracy in self.accuracy.items()},
            "ttl": {name: costs.numbers() for name, costs in self.costs.items()},
            "hits_at_equal_memory": {
                name: {
                    f"{m:g}": dict(zip(("theirs", "ours"), self.equal_memory(name, m), strict=True))
                    for m in BREAK_EVENS_S
                }
                for name in self.costs
                if name != OURS
            },
            "tools": {
                name: {**accuracy.numbers(), "ttl": costs.numbers()}
                for name, (accuracy, costs) in self.tools.items()
            },
        }


class _Field:
    """Ours and the baselines, asked and told together."""

    def __init__(self) -> None:
        self.ours = ToolForecaster()
        self.shaped: dict[str, Quantiles | LogNormal] = {
            "quantiles, all calls": Quantiles(by_tool=False),
            "quantiles per tool": Quantiles(by_tool=True),
            "log-normal per tool": LogNormal(),
        }
        self.mean = Mean()
        self.continuum = Continuum()

    def forecast(self, row: CallRow) -> Survival:
        """Ours, as it stands when the row's call is emitted, its place among parallel calls known."""
        return self.ours.predict_one(tenant=row.tenant, program=row.program, call=row.call, group=row.group)

    def learn(self, row: CallRow) -> None:
        self.ours.observe(
            tenant=row.tenant,
            program=row.program,
            call=row.call,
            seconds=row.seconds,
            censored=row.censored,
            group=row.group,
        )
        if not row.censored:
            for other in (*self.shaped.values(), self.mean, self.continuum):
                other.learn(row.call.name, row.seconds)

    def score(self, row: CallRow, forecast: Survival, report: Report) -> None:
        tool, seconds = row.call.name, row.seconds
        for name, accuracy, costs in _places(report, tool):
            del name
            accuracy.add(forecast, seconds)
            costs.add(forecast.best_ttl, seconds)
        report.frontier.add(forecast, seconds)
        for name, other in self.shaped.items():
            said = other.predict(tool)
            report.accuracy.setdefault(name, Accuracy(TOOL_SECONDS)).add(said, seconds)
            report.costs.setdefault(name, Costs()).add(said.best_ttl, seconds)
        report.accuracy.setdefault("mean per tool", Accuracy(TOOL_SECONDS)).add_point(
            self.mean.predict(tool), seconds
        )
        rules: dict[str, Callable[[float], float]] = {
            "Continuum's rule": lambda m: self.continuum.ttl(tool, m),
            "fixed, the break-even": lambda m: m,
            f"fixed, {_KEPT_LONG_S:g} s": lambda m: _KEPT_LONG_S,
            "never keep": lambda m: 0.0,
        }
        for name, rule in rules.items():
            report.costs.setdefault(name, Costs()).add(rule, seconds)


def _places(report: Report, tool: str) -> Iterator[tuple[str, Accuracy, Costs]]:
    yield (
        OURS,
        report.accuracy.setdefault(OURS, Accuracy(TOOL_SECONDS)),
        report.costs.setdefault(OURS, Costs()),
    )
    if tool in report.tools or len(report.tools) < _TOOLS_SHOWN_MAX:
        accuracy, costs = report.tools.setdefault(tool, (Accuracy(TOOL_SECONDS), Costs()))
        yield tool, accuracy, costs


def _on_one_clock(rows: Sequence[CallRow]) -> Sequence[CallRow]:
    """Rows whose times count from their program's start: one program after the other, as they stand in the file."""
    if not any(row.relative for row in rows):
        return rows
    begun: dict[str | None, float] = {}
    out, end = [], 0.0
    for row in rows:
        offset = begun.setdefault(row.program, end)
        out.append(replace(row, at=row.at + offset, ended_at=row.ended_at + offset, relative=False))
        end = max(end, row.ended_at + offset)
    return out


def evaluate_calls(
    rows: Sequence[CallRow], *, score_last: float = 0.7, told: Callable[[int], None] | None = None
) -> Report:
    """Forecast every row in time order and score the last part; `told` hears of each row done."""
    ordered = sorted(_on_one_clock(rows), key=lambda row: (row.at, row.group[0]))
    first = len(ordered) - round(len(ordered) * score_last)
    field_, report = _Field(), Report()
    out: list[tuple[float, int, CallRow]] = []  # emitted, not yet ended
    for i, row in enumerate(ordered):
        while out and out[0][0] <= row.at:
            field_.learn(heapq.heappop(out)[2])
        if i >= first:
            if row.censored:
                report.censored += 1
            else:
                forecast = field_.forecast(row)
                report.scored += 1
                field_.score(row, forecast, report)
                _, outcomes = report.curves.get(row.call.name, (forecast, []))
                outcomes.append(row.seconds)
                if row.call.name in report.curves or len(report.curves) < _TOOLS_SHOWN_MAX:
                    report.curves[row.call.name] = (forecast, outcomes)
        heapq.heappush(out, (row.ended_at, i, row))
        if told is not None:
            told(i + 1)
    return report
