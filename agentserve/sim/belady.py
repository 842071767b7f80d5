"""The most that any eviction could have hit, on the very trace that a run made.

Rule: the trace is taken as it happened: which engine, when, how long each prompt. Only what to evict is chosen with
knowledge of the future: the program whose next step on that engine is furthest away loses tokens first (Belady's rule,
in tokens). A program's own text is used by nobody else, so its next step is its next use; shared heads count as hit
wherever the run itself hit them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from agentserve.sim.traces import StepTrace

NEVER = float("inf")


def best_cached_tokens(steps: Sequence[StepTrace], capacities: Sequence[int]) -> int:
    """Prompt tokens that an optimal eviction would have found cached, over all engines."""
    by_engine: dict[int, list[StepTrace]] = {}
    for step in sorted(steps, key=lambda s: (s.started_at, s.program, s.index)):
        if step.ok and step.engine >= 0:
            by_engine.setdefault(step.engine, []).append(step)
    return sum(Replayed(rows, capacities[engine]).hits() for engine, rows in sorted(by_engine.items()))


class Replayed:
    """One engine's steps, replayed with an eviction that knows what comes."""

    def __init__(self, steps: Sequence[StepTrace], capacity: int) -> None:
        self.steps = steps
        self.capacity = capacity
        self.held: dict[int, int] = {}  # program -> tokens kept for its next step
        self.kept = 0
        self.running = 0
        self.furthest: list[tuple[float, int]] = []  # (minus next use, program); stale entries are skipped
        self.next_use: dict[int, float] = {}

    def hits(self) -> int:
        """Tokens found cached."""
        following = [NEVER] * len(self.steps)
        latest: dict[int, int] = {}
        moments: list[tuple[float, int, int]] = []
        for i, step in enumerate(self.steps):
            if step.program in latest:
                following[latest[step.program]] = step.started_at
            latest[step.program] = i
            moments += [(step.started_at, 1, i), (step.ended_at, 0, i)]
        total = 0
        for _, begins, i in sorted(moments):
            step = self.steps[i]
            need = step.prompt + step.output
            if begins:
                own = self.held.pop(step.program, 0)
                self.kept -= own
                self.running += need
                total += max(min(own, step.prompt - step.fresh), step.cached)
            else:
                self.running -= need
                if following[i] < NEVER:
                    self._keep(step.program, need, following[i])
            self._evict()
        return total

    def _keep(self, program: int, tokens: int, until: float) -> None:
        self.kept += tokens - self.held.get(program, 0)
        self.held[program] = tokens
        self.next_use[program] = until
        heapq.heappush(self.furthest, (-until, program))

    def _evict(self) -> None:
        over = self.kept - max(self.capacity - self.running, 0)
        while over > 0:
            key, program = self.furthest[0]
            tokens = self.held.get(program, 0)
            if not tokens or self.next_use[program] != -key:
                heapq.heappop(self.furthest)
                continue
            cut = min(tokens, over)
            self.held[program] = tokens - cut
            self.kept -= cut
            over -= cut
