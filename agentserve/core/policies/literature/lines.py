"""Waiting steps in an order of their own.

Rule: a key is static until it is put anew; smaller goes first, ties by arrival and then by id.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from agentserve.core.ids import StepId, TenantId
from agentserve.core.program import Step

CLASS_SPAN = 100_000  # engine priorities between two classes of a key
PRIORITY_MAX = (1 << 20) - 1  # below what a warm-up gets

Key = tuple[int, float]  # class, then seconds


class Line:
    """Waiting steps by key. Leaving and re-keying cost O(log n): stale heap entries are skipped when they come up."""

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[Key, float, StepId]] = []
        self._entries: dict[StepId, tuple[Key, Step]] = {}

    def put(self, step: Step, key: Key) -> None:
        """Into the line, or to another place in it."""
        self._entries[step.id] = (key, step)
        heapq.heappush(self._heap, (key, step.arrived_at, step.id))
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [(k, s.arrived_at, s.id) for k, s in self._entries.values()]
            heapq.heapify(self._heap)

    def drop(self, step: Step) -> None:
        del self._entries[step.id]

    def head(self) -> Step | None:
        while self._heap:
            key, _, step_id = self._heap[0]
            entry = self._entries.get(step_id)
            if entry is not None and entry[0] == key:
                return entry[1]
            heapq.heappop(self._heap)
        return None

    def key_of(self, step: Step) -> Key:
        return self._entries[step.id][0]

    def __iter__(self) -> Iterator[Step]:
        """All steps, in no useful order."""
        return iter([step for _, step in self._entries.values()])

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, step: Step) -> bool:
        return step.id in self._entries


class LineByTenant(Line):
    """A line for each tenant; whose head goes next is asked anew each time, of `rank`: the least goes."""

    __slots__ = ("_lines", "_rank")

    def __init__(self, rank: Callable[[TenantId, Step], float]) -> None:
        super().__init__()
        self._rank = rank
        self._lines: dict[TenantId, Line] = {}

    def put(self, step: Step, key: Key) -> None:
        self._entries[step.id] = (key, step)
        line = self._lines.get(step.program.tenant)
        if line is None:
            line = self._lines[step.program.tenant] = Line()
        line.put(step, key)

    def drop(self, step: Step) -> None:
        super().drop(step)
        line = self._lines[step.program.tenant]
        line.drop(step)
        if not line:
            del self._lines[step.program.tenant]

    def head(self) -> Step | None:
        heads = [(t, step) for t, line in self._lines.items() if (step := line.head()) is not None]
        if not heads:
            return None
        return min(heads, key=lambda h: (self._rank(*h), h[0]))[1]

    def tenants(self) -> Iterable[TenantId]:
        """Those with steps waiting."""
        return self._lines.keys()


def stamp(key: Key) -> int:
    """The key as an engine priority: the engine's own queue, should it have one, keeps the same order."""
    rank, seconds = key
    return max(0, min(rank * CLASS_SPAN + int(min(max(seconds, 0.0), CLASS_SPAN - 1)), PRIORITY_MAX))
