"""Clairvoyant: what could be reached if durations and lengths were known. The bound, not a policy to run live.

Intent: show how much of the way to the possible a real policy goes.
Reads: the oracle's truth (simulate with the forecasts `oracle`): outputs, gaps, steps left.

Ours, told the truth: admission by exact footprints; the program with the least work left first; when the seated outgrow
an engine, the idle programs that return the latest go until what arrived fits (Belady's rule); and while others wait, a
gap keeps its seat only if its end is near enough to be worth the memory.

Loses: nothing to any policy that must guess, but for the gaps between seats and the engine's own LRU; with learned
forecasts instead of the oracle's it is an over-confident version of ours.

Departs: it is a heuristic for a problem that is hard even with everything known, so it bounds what was tried, not what
exists. Eviction itself stays the stock engine's; what shall stay is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.seats import Book
from agentserve.core.policies.working_set import WorkingSet
from agentserve.core.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class ClairvoyantParams(WorkingSetParams):
    """Ours without the margins for what is not known."""

    capacity_margin: float = 0.0
    margin_tokens: int = 100
    beta: float = 20.0


class Clairvoyant(WorkingSet):
    """Shortest remaining work, Belady's victims, no safety margins."""

    name = "clairvoyant"
    Params = ClairvoyantParams

    def _make_room(self, book: Book, program: Program, over: float, now: float) -> None:
        """Idle seats go, the latest to return first, until what arrived fits."""
        ceiling = self.params.ceiling * book.capacity
        idle = [p for p in book.seated.values() if p.idle]
        for other in sorted(idle, key=lambda p: (self._returns_at(p, now), p.id), reverse=True):
            if book.load <= ceiling:
                break
            self._let_go(other, book, now, "outranked")

    def _returns_at(self, program: Program, now: float) -> float:
        """When its gap ends, by the forecast."""
        if program.returns_at is not None:
            return program.returns_at
        gap = self.board.gap(program)
        if gap is None or program.gap_started_at is None:
            return now
        return program.gap_started_at + gap.quantile(0.5)
