"""The forecasters and rules that ours has to beat, each as its literature or plain habit has it.

One rule: a baseline learns online from the same outcomes, at the same moments, as ours. None is weakened: where a
description leaves a choice open, the better one is taken.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from agentserve.core.forecast.calls import text_hash
from agentserve.core.forecast.grid import TOOL_SECONDS, Grid
from agentserve.core.forecast.ladder import Ladder, Rung
from agentserve.core.forecast.survival import Survival

_WINDOW = 2_000  # outcomes kept a tool by the rules that keep outcomes
_TOOLS_MAX = 4_096


class Quantiles:
    """Running quantiles: of all calls, or per tool with those of all calls until a tool is known."""

    def __init__(self, *, by_tool: bool) -> None:
        rungs = [Rung(half_life=1_000, strength=1), Rung(half_life=300, strength=1)][: 1 + by_tool]
        self._ladder = Ladder(TOOL_SECONDS, rungs, keys_max=2 * _TOOLS_MAX)

    def predict(self, tool: str) -> Survival:
        return self._ladder.forecast((0, text_hash(tool)))

    def learn(self, tool: str, seconds: float) -> None:
        self._ladder.learn((0, text_hash(tool)), seconds)


class LogNormal:
    """Per tool, a log-normal distribution with the running mean and variance of log-seconds."""

    def __init__(self, grid: Grid = TOOL_SECONDS) -> None:
        self._grid = grid
        self._moments: dict[str, tuple[float, float, float]] = {}

    def predict(self, tool: str) -> Survival:
        n, mean, squares = self._moments.get(tool) or self._moments.get("", (0.0, 0.0, 0.0))
        if n < 3:
            n, mean, squares = self._moments.get("", (0.0, 0.0, 0.0))
        deviation = math.sqrt(squares / (n - 1)) if n > 1 else 2.0
        scale = 1.0 / (max(deviation, 0.05) * math.sqrt(2.0))
        below = [0.5 * (1.0 + math.erf((edge - mean) * scale)) for edge in self._grid.log_edges]
        below[0], below[-1] = 0.0, 1.0
        return Survival(self._grid, [b - a for a, b in pairwise(below)])

    def learn(self, tool: str, seconds: float) -> None:
        y = math.log(min(max(seconds, self._grid.low), self._grid.edges[-1]))
        for key in (tool, ""):
            n, mean, squares = self._moments.get(key, (0.0, 0.0, 0.0))
            if key not in self._moments and len(self._moments) >= _TOOLS_MAX:
                continue
            delta = y - mean
            mean += delta / (n + 1)
            self._moments[key] = (n + 1, mean, squares + delta * (y - mean))


class Mean:
    """Per tool, the running mean of seconds."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, float]] = {}

    def predict(self, tool: str) -> float:
        n, total = self._sums.get(tool) or self._sums.get("", (0, 0.0))
        return total / n if n else 1.0

    def learn(self, tool: str, seconds: float) -> None:
        for key in (tool, ""):
            if key in self._sums or len(self._sums) < _TOOLS_MAX:
                n, total = self._sums.get(key, (0, 0.0))
                self._sums[key] = (n + 1, total + seconds)


class Continuum:
    """Continuum's rule: the TTL t, of zero and the durations seen, with the greatest F(t) x benefit - t.

    The benefit is the break-even time. Until a hundred outcomes were seen in all, durations are taken to be
    exponential with a mean of a second; until a hundred of the tool, those of all tools are used.
    """

    ENOUGH = 100
    _REFRESH = 25

    def __init__(self) -> None:
        self._seen: dict[str, tuple[list[float], deque[float]]] = {}
        self._chosen: dict[tuple[str, float], tuple[int, float]] = {}
        self._count: dict[str, int] = {}

    def ttl(self, tool: str, break_even_s: float) -> float:
        if self._count.get("", 0) <= self.ENOUGH:
            return math.log(break_even_s) if break_even_s > 1.0 else 0.0
        key = tool if self._count.get(tool, 0) > self.ENOUGH else ""
        count = self._count[key]
        made, ttl = self._chosen.get((key, break_even_s), (-self._REFRESH, 0.0))
        if count - made >= self._REFRESH:
            ttl = _best(self._seen[key][0], break_even_s)
            self._chosen[key, break_even_s] = (count, ttl)
        return ttl

    def learn(self, tool: str, seconds: float) -> None:
        for key in (tool, ""):
            if key not in self._seen:
                if len(self._seen) >= _TOOLS_MAX:
                    continue
                self._seen[key] = ([], deque())
            ordered, arrived = self._seen[key]
            insort(ordered, seconds)
            arrived.append(seconds)
            if len(arrived) > _WINDOW:
                del ordered[bisect_left(ordered, arrived.popleft())]
            self._count[key] = self._count.get(key, 0) + 1


def _best(ordered: Sequence[float], benefit: float) -> float:
    best, at = 0.0, 0.0
    share = benefit / len(ordered)
    for i, seconds in enumerate(ordered, 1):
        if seconds > benefit:
            break
        if i * share - seconds > best:
            best, at = i * share - seconds, seconds
    return at
