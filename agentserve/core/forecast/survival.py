"""What a forecast says: a distribution over a log grid, asked about quantiles, survival and time to keep.

One rule: every answer follows from the same masses, so that no two answers contradict each other. It knows
nothing about where the masses came from.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from agentserve.core.forecast.grid import Grid

# Keeping for longer than this many break-even times has never paid on the workloads measured.
CAP_BREAK_EVENS = 2.0
QUANTILES_KEPT_MAX = 4


class Keeping(NamedTuple):
    """How long to keep what a return needs, at the least expected cost, and what comes of it."""

    ttl_s: float  # from now; 0: let go at once
    back: float  # P(back by then)
    held_s: float  # expected, until it is back or let go


class Survival:
    """How long until something returns, as a distribution; conditional on `elapsed_s` where that was given.

    Times are total times, counted from the start of the wait, also when `elapsed_s` was given: after 10 s of
    waiting, `quantile(0.5)` is above 10.
    """

    __slots__ = ("_asked", "_cumulated", "elapsed_s", "grid", "masses")

    def __init__(self, grid: Grid, masses: Sequence[float], *, elapsed_s: float = 0.0) -> None:
        self.grid = grid
        self.elapsed_s = elapsed_s
        if elapsed_s > grid.low:
            place, part = grid.position(elapsed_s)
            masses = [0.0] * place + [masses[place] * (1 - part), *masses[place + 1 :]]
        total = sum(masses)
        if total <= 0.0:  # it outlasted all that was ever seen
            masses = [0.0] * (grid.bins - 1) + [1.0]
        elif abs(total - 1.0) > 1e-6:
            masses = [m / total for m in masses]
        # arrays, since every program in a gap keeps one
        self.masses: array[float] = masses if isinstance(masses, array) else array("d", masses)
        self._cumulated: array[float] | None = None
        self._asked: tuple[tuple[float, float], ...] = ()  # quantiles, for a forecast that many steps share

    @property
    def _below(self) -> array[float]:
        """The probability of less than each edge; made when first asked for."""
        below = self._cumulated
        if below is None:
            below = self._cumulated = array("d", accumulate(self.masses, initial=0.0))
        return below

    @property
    def never_returns(self) -> float:
        """The probability of not returning within the grid's horizon."""
        return self.masses[-1]

    def cdf(self, t: float) -> float:
        """The probability of having returned by `t`."""
        low = self.grid.low
        if t <= self.elapsed_s or t <= low:
            return 0.0
        place, part = self.grid.position(t)
        if self.elapsed_s <= low:  # nearly always: from the start of the wait
            return self._below[place] + self.masses[place] * part
        start = max(0.0, self._start(place))
        if part <= start:
            return self._below[place]
        return self._below[place] + self.masses[place] * (part - start) / (1 - start)

    def _start(self, place: int) -> float:
        """Where in bin `place` the mass begins: at its left edge, except in the bin that holds `elapsed_s`."""
        if self.elapsed_s <= self.grid.low:
            return 0.0
        at, part = self.grid.position(self.elapsed_s)
        return min(part, 1 - 1e-9) if at == place else 0.0

    def survival(self, t: float) -> float:
        """The probability of not having returned by `t`."""
        return 1.0 - self.cdf(t)

    def quantile(self, q: float, elapsed_s: float = 0.0) -> float:
        """The time by which it has returned with probability `q`, if it had not after `elapsed_s`; the horizon where
        that is never."""
        if elapsed_s > self.elapsed_s:
            return Survival(self.grid, self.masses, elapsed_s=elapsed_s).quantile(q)
        for asked, answer in self._asked:
            if asked == q:
                return answer
        answer = self._quantile(q)
        if len(self._asked) < QUANTILES_KEPT_MAX:
            self._asked = (*self._asked, (q, answer))
        return answer

    def _quantile(self, q: float) -> float:
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        place = min(max(bisect_left(self._below, q, 1) - 1, 0), self.grid.bins - 1)
        if place == self.grid.bins - 1 and self.masses[place] < 1.0:
            return self.grid.high  # what lies beyond is not told apart
        start, mass = self._start(place), self.masses[place]
        part = (q - self._below[place]) / mass if mass > 0.0 else 0.0
        return max(self.grid.value_at(place, start + min(max(part, 0.0), 1.0) * (1 - start)), self.elapsed_s)

    def mean_remaining(self, elapsed: float, horizon: float) -> float:
        """The expected further wait at `elapsed`, no single wait counted beyond `horizon` seconds from there."""
        at = Survival(self.grid, self.masses, elapsed_s=elapsed) if elapsed > self.elapsed_s else self
        end = elapsed + horizon
        total = 0.0
        for mass, mean in zip(at.masses, self.grid.means, strict=True):
            if mass:
                total += mass * (min(max(mean, elapsed), end) - elapsed)
        return total

    def best_ttl(self, break_even_s: float, cap_s: float = math.inf) -> float:
        """`keeping`'s answer alone."""
        return self.keeping(break_even_s, cap_s).ttl_s

    def keeping(self, break_even_s: float, cap_s: float = math.inf, elapsed_s: float = 0.0) -> Keeping:
        """How long to keep what the return needs, from now, at the least expected cost.

        `break_even_s` is how many seconds of holding cost as much as one miss. Keeping until t costs the time
        held plus, with the probability of no return by then, the miss. Zero means: let go at once.
        """
        grid, origin = self.grid, self.elapsed_s
        if elapsed_s > max(origin, grid.low):
            return Survival(grid, self.masses, elapsed_s=elapsed_s).keeping(break_even_s, cap_s)
        if break_even_s <= 0.0 or cap_s <= 0.0:
            return Keeping(0.0, 0.0, 0.0)
        end = origin + min(cap_s, CAP_BREAK_EVENS * break_even_s)
        first = grid.position(origin)[0] if origin > grid.low else 0
        last = max(first, bisect_right(grid.edges, end, 0, grid.bins) - 1)  # the bin that holds the cap
        means: Sequence[float] = grid.means
        if origin:
            means = [max(mean - origin, 0.0) for mean in means]
        miss = break_even_s - origin
        best, best_at, missed = (
            break_even_s,
            origin,
            1.0,
        )  # the cost, when, and the probability of no return by then
        held, alive = 0.0, 1.0
        for mass, mean, edge in zip(
            self.masses[first:last], means[first:last], grid.edges[first + 1 : last + 1], strict=True
        ):
            held += mass * mean
            alive -= mass
            cost = held + alive * (edge + miss)
            if cost < best:
                best, best_at, missed = cost, edge, alive
        # Between two edges the cap itself is the last candidate.
        left = max(grid.edges[last], origin)
        if end > left:
            start, width = self._start(last), grid.log_edges[last + 1] - grid.log_edges[last]
            inside = (math.log(end) - grid.log_edges[last]) / width
            part = self.masses[last] * min(1.0, (inside - start) / (1.0 - start))
            cost = held + part * (0.5 * (left + end) - origin) + (alive - part) * (end + miss)
            if cost < best:
                best, best_at, missed = cost, end, alive - part
        return Keeping(best_at - origin, 1.0 - missed, best - missed * break_even_s)
