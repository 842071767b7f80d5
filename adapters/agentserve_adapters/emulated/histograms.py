"""Histograms as Prometheus knows them, fed with many equal observations at once, on vLLM's bucket bounds.

Rule: bounds are those of vLLM's `v1/metrics/buckets.py`, so that its dashboards' quantiles mean the same here.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

LATENCY_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
INTER_TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
COPIES = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)


def token_bounds(context_max: int) -> tuple[int, ...]:
    """1, 2, 5, 10, … up to the model's context."""
    out: list[int] = []
    unit = 1
    while True:
        for digit in (1, 2, 5):
            if digit * unit > context_max:
                return tuple(out)
            out.append(digit * unit)
        unit *= 10


class Histogram:
    """Counts by bucket, and the sum."""

    __slots__ = ("bounds", "count", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(b) for b in bounds)
        self.counts = [0] * len(self.bounds)
        self.count = 0
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """The same value so many times."""
        if times < 1:
            return
        at = bisect.bisect_left(self.bounds, value)
        if at < len(self.counts):
            self.counts[at] += times
        self.count += times
        self.sum += value * times

    def rows(self) -> Iterator[tuple[str, int]]:
        """Upper bound as Prometheus spells it, and how many observations are within it."""
        within = 0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            within += count
            yield str(bound), within
        yield "+Inf", self.count
