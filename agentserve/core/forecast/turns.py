"""Turns that ended and were not followed by another yet: the evidence there is before a program is given up.

One rule: a turn that is still out speaks against a return until it comes back or is given up, when whoever learns how
long it took takes over. It knows counts by key and nothing of seconds: most programs end with a turn whose client
never says that it was the last, and half an hour, until such a one is given up, is long to keep its memory.
"""

from __future__ import annotations

from cachetools import LRUCache

from agentserve.core.forecast.survival import Survival

KEYS_MAX = 4_096
HALF_LIFE = 200  # in turns of the key
DECAY = 0.5 ** (1 / HALF_LIFE)
STRENGTH = 2.0  # turns that are believed to have come back before any did


class TurnsOut:
    """`began` when a turn ends and the wait for the next begins, `over` when that is known to have ended."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: LRUCache[int, list[float]] = LRUCache(KEYS_MAX)  # key -> still out, and settled

    def began(self, key: int) -> None:
        """One more is out."""
        counts = self._counts.setdefault(key, [0.0, 0.0])
        counts[0] = counts[0] * DECAY + 1.0
        counts[1] *= DECAY

    def over(self, key: int) -> None:
        """One came back, or was given up."""
        counts = self._counts.setdefault(key, [0.0, 0.0])
        counts[0] = max(counts[0] - 1.0, 0.0)
        counts[1] += 1.0

    def share(self, key: int) -> float:
        """Of all turns under the key, those still out."""
        out, settled = self._counts.get(key) or (0.0, 0.0)
        return out / (out + settled + STRENGTH)


def doubted(gap: Survival, share: float) -> Survival:
    """The same, but for a share that does not return at all."""
    masses = [mass * (1.0 - share) for mass in gap.masses]
    masses[-1] += share
    return Survival(gap.grid, masses, elapsed_s=gap.elapsed_s)
