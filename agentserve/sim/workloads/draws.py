"""Random draws by the shapes that agent traffic has, from figures as they are published: a median and a p90.

Rule: every program draws from a generator of its own, seeded by workload, seed and index, so that adding a
program changes no other.
"""

from __future__ import annotations

import math
import random

Z90 = 1.2815515655446004


class Draws:
    """The draws of one program."""

    __slots__ = ("rng",)

    def __init__(self, *name: object) -> None:
        self.rng = random.Random(":".join(map(str, name)))

    def lognormal(self, median: float, sigma: float, *, most: float = math.inf, least: float = 0.0) -> float:
        return min(max(median * math.exp(sigma * self.rng.gauss(0.0, 1.0)), least), most)

    def by_p90(self, median: float, p90: float, *, most: float = math.inf, least: float = 0.0) -> float:
        """Log-normal with this median and 90th percentile."""
        return self.lognormal(median, math.log(p90 / median) / Z90, most=most, least=least)

    def count(self, median: float, p90: float, *, most: int, least: int = 1) -> int:
        return max(least, min(most, round(self.by_p90(median, p90))))

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, weighted: dict[str, float]) -> str:
        names = list(weighted)
        return self.rng.choices(names, [weighted[n] for n in names])[0]
