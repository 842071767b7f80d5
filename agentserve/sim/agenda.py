"""What is still to happen in a simulated world, and how long messages take in it.

Rule: a heap of (time, sequence, what). Of two things due at once the one that was entered first happens first, so a run
does not depend on hashes or addresses.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Agenda:
    """Virtual time, and what is due when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Enter something; what is entered for the past happens now."""
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, what, args))

    def step(self) -> None:
        """Go to what is due next, and let it happen."""
        when, _, what, args = heapq.heappop(self._heap)
        if when > self.now:
            self.now = when
        what(*args)


@dataclass(slots=True, kw_only=True)
class Network:
    """One-way delays: constant, times a factor while the network is slow."""

    client_s: float = 0.0005
    engine_s: float = 0.0005
    factor: float = 1.0

    @property
    def to_client_s(self) -> float:
        return self.client_s * self.factor

    @property
    def to_engine_s(self) -> float:
        return self.engine_s * self.factor
