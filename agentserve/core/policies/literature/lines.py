"""What queueing policies keep their steps in: lines by key, timers by name, and what each engine still owes.

Rule: a key is static until it is put anew; smaller goes first, ties by arrival and then by id. Every record here is
bounded by what is alive: stale heap entries are swept.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId, StepId, TenantId
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

    def first(self, count: int) -> list[Step]:
        """The first few, in order."""
        taken: list[tuple[Key, float, StepId]] = []
        while len(taken) < count and self.head() is not None:
            taken.append(heapq.heappop(self._heap))
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return [self._entries[step_id][1] for _, _, step_id in taken]

    def last_come(self) -> Step | None:
        """Who joined last."""
        entry = next(reversed(self._entries.values()), None)
        return None if entry is None else entry[1]

    def key_of(self, step: Step) -> Key:
        return self._entries[step.id][0]

    def __iter__(self) -> Iterator[Step]:
        """All steps, in no useful order."""
        return iter([step for _, step in self._entries.values()])

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, step: Step) -> bool:
        return step.id in self._entries


class Timers:
    """One due time a name. What was dropped or set anew is skipped, and swept before it outgrows the rest."""

    __slots__ = ("_due", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}

    def set(self, name: str, due: float) -> None:
        self._due[name] = due
        heapq.heappush(self._heap, (due, name))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(at, n) for n, at in self._due.items()]
            heapq.heapify(self._heap)

    def drop(self, name: str) -> None:
        self._due.pop(name, None)

    def first(self) -> float | None:
        """The next due time."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self) -> str:
        """The name that is due first; its timer is gone."""
        self.first()
        name = heapq.heappop(self._heap)[1]
        del self._due[name]
        return name

    def __len__(self) -> int:
        return len(self._due)


class Owed:
    """What each engine still has to do for the steps placed on it, in line or in flight, in whatever unit."""

    __slots__ = ("_of_step", "_totals")

    def __init__(self) -> None:
        self._of_step: dict[StepId, tuple[EngineId, float]] = {}
        self._totals: dict[EngineId, float] = {}

    def put(self, step: Step, engine: Engine, amount: float) -> None:
        """The step is this engine's now, and no other's."""
        self.drop(step)
        self._of_step[step.id] = (engine.id, amount)
        self._totals[engine.id] = self._totals.get(engine.id, 0.0) + amount

    def drop(self, step: Step) -> None:
        engine, amount = self._of_step.pop(step.id, (None, 0.0))
        if engine is not None:
            self._totals[engine] = max(self._totals[engine] - amount, 0.0)

    def of(self, engine: Engine, without: Step | None = None) -> float:
        """All that is owed there, but for this step's part."""
        total = self._totals.get(engine.id, 0.0)
        if without is not None and without.id in self._of_step:
            where, amount = self._of_step[without.id]
            total -= amount if where == engine.id else 0.0
        return max(total, 0.0)


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
