"""The line of programs that wait for a seat: fair between tenants, by key within one.

Rule: a key is static while its program waits, so that a heap holds it; joining, leaving and asking for the next cost
O(log n) in the programs that wait. Who may be seated where is not known here.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from agentserve.core.fairness import Accounts
from agentserve.core.ids import ProgramId, TenantId
from agentserve.core.program import Program, Step


@dataclass(slots=True, eq=False)
class Queued:
    """A program without a seat, and its waiting steps; without any it is expected, and waits until `expected_until`."""

    program: Program
    key: float
    steps: list[Step] = field(default_factory=list)
    expected_until: float = 0.0


class Line:
    """All of them, a heap for each tenant."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self._queued: dict[ProgramId, Queued] = {}
        self._heaps: dict[TenantId, list[tuple[float, ProgramId]]] = {}

    def __len__(self) -> int:
        return len(self._queued)

    def __bool__(self) -> bool:
        return bool(self._queued)

    @property
    def tenants(self) -> list[TenantId]:
        """Tenants that wait, perhaps with some whose last program has just left."""
        return list(self._heaps)

    def join(self, program: Program, key: float, now: float) -> Queued:
        """The program waits, its record hung on it."""
        queued = program.own = Queued(program, key)
        heap = self._heaps.get(program.tenant)
        if not heap:
            heap = self._heaps[program.tenant] = []
            self.accounts.rejoin(program.tenant, list(self._heaps), now)
        self._queued[program.id] = queued
        heapq.heappush(heap, (key, program.id))
        return queued

    def leave(self, program: Program) -> Queued:
        """Out of the line; its heap entry is skipped when it comes up."""
        program.own = None
        return self._queued.pop(program.id)

    def next(self, now: float) -> Queued | None:
        """Who goes next: the tenant with the least service, then the smallest key."""
        for tenant in [t for t, heap in self._heaps.items() if not self._settle(heap, now)]:
            del self._heaps[tenant]
        if not self._heaps:
            return None
        tenant = next(iter(self._heaps)) if len(self._heaps) == 1 else self.accounts.least(self._heaps, now)
        return self._queued[self._heaps[tenant][0][1]]

    def _settle(self, heap: list[tuple[float, ProgramId]], now: float) -> bool:
        """Drop entries of programs that no longer wait; whether one is left."""
        while heap:
            key, program_id = heap[0]
            queued = self._queued.get(program_id)
            if queued is not None and queued.key == key:
                if queued.steps or now <= queued.expected_until:
                    return True
                self.leave(queued.program)
            heapq.heappop(heap)
        return False

    def note_gap(self, now: float) -> None:
        if len(self._heaps) > 1:
            self.accounts.note_gap(self._heaps, now)
