"""A stretch of an engine's time: one iteration, or many decode iterations in closed form.

Rule: arithmetic only. In a run of decode iterations each adds a token to each sequence, so their times are an
arithmetic series; where an iteration ends is solved for, never stepped to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agentserve.engine.batch import Inside


@dataclass(slots=True)
class Window:
    """What the engine is doing: one iteration, or `count` decode iterations in a row."""

    start: float
    end: float
    count: int
    chunks: list[tuple[Inside, int]] = field(default_factory=list)  # a single iteration's share of each
    sequences: int = 0  # of a decode run, and what follows as well
    base_s: float = 0.0  # a decode iteration without the KV of its context
    per_token_s: float = 0.0
    context: int = 0

    def duration(self, count: int) -> float:
        """Of the first `count` iterations of a decode run."""
        growth = self.sequences * count * (count - 1) / 2
        return count * self.base_s + self.per_token_s * (self.context * count + growth)

    def iterations_by(self, now: float, *, up: bool = False) -> int:
        """How many iterations of a decode run are complete at `now`; `up` counts the one under way as well."""
        elapsed = now - self.start
        if elapsed <= 0:
            return 1 if up else 0
        a = self.per_token_s * self.sequences / 2
        b = self.base_s + self.per_token_s * self.context - a
        guess = int((-b + math.sqrt(b * b + 4 * a * elapsed)) / (2 * a)) if a > 0 else int(elapsed / b)
        count = max(0, min(guess, self.count))
        while count < self.count and self.duration(count + 1) <= elapsed:
            count += 1
        while count > 0 and self.duration(count) > elapsed:
            count -= 1
        if up and self.duration(count) < elapsed:
            count += 1
        return min(max(count, 1) if up else count, self.count)

    def truncate(self, now: float) -> None:
        """Something changed: a decode run ends with the iteration that is under way."""
        if self.chunks:
            return
        count = self.iterations_by(now, up=True)
        if count < self.count:
            self.count = count
            self.end = self.start + self.duration(count)
