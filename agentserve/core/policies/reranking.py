"""Who waits is ranked anew when it turns out what kind of programs these are.

A rank is reckoned when a program joins the line. Where all of a pipeline's programs start at once, most join before any
has come back to show that it begins anew: they stand by the context that they would keep, if they were agents, behind
everyone who comes after them.

Rule: a look costs no more than `RANKED_MOST` ranks, however many wait: the rest is ranked at the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from agentserve.core.policies.anew import Anew
from agentserve.core.policies.order import Order
from agentserve.core.policies.waiting import Line, Queued
from agentserve.core.program import Program

RANKED_MOST = 500  # at one look


class Reranking:
    """Of those who waited when the kind turned out."""

    __slots__ = ("_anew", "_line", "_nearly_all", "_order", "_role", "_stale")

    def __init__(self, line: Line, order: Order, anew: Anew, role: Callable[[Program], int]) -> None:
        self._line = line
        self._order = order
        self._anew = anew
        self._role = role
        self._nearly_all = anew.nearly_all
        self._stale: deque[Queued] = deque()

    def look(self, now: float) -> None:
        """Rank anew whom the last change left, if any."""
        if self._anew.nearly_all != self._nearly_all:
            self._nearly_all = self._anew.nearly_all
            self._stale = deque(self._line.everyone())
        for _ in range(min(len(self._stale), RANKED_MOST)):
            queued = self._stale.popleft()
            program = queued.program
            if program.own is queued:
                self._line.rank(queued, self._order.key(program), self._role(program), now)
