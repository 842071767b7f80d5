"""A logarithmic grid: the bins in which every forecast counts what it saw.

One rule: a grid never changes after it is built, so that masses counted on it yesterday, or by another
gateway, can be added to masses counted today. It knows nothing about tools, programs or time's origin: only
positive numbers (seconds, tokens, steps).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

# What one observation adds to a histogram: (bin, mass) pairs, whose masses add to one.
Smear = Sequence[tuple[int, float]]

# Where, inside a bin, an observation may be centred. Four places are enough: beyond that the kernel's own
# width (most of a bin) hides the difference.
_PLACES = 4


class Grid:
    """`bins` bins from `low` to `high`, equal in log, the last of which is everything above `high`.

    The first bin also takes everything below `low`. An observation is smeared over its neighbours with a
    Gaussian of `blur` bins, so that a forecast from one observation is already a smooth curve.
    """

    __slots__ = (
        "_log_low",
        "_per_log",
        "_smears",
        "bins",
        "edges",
        "high",
        "log_edges",
        "low",
        "means",
        "width",
    )

    def __init__(self, *, low: float, high: float, bins: int, beyond: float, blur: float = 0.7) -> None:
        if not (0 < low < high < beyond and bins >= 8):
            raise ValueError(
                f"a grid needs 0 < low < high < beyond and 8 bins: {low}, {high}, {beyond}, {bins}"
            )
        self.low, self.high, self.bins = low, high, bins
        inner = bins - 1
        self.width = math.log(high / low) / inner
        self._log_low = math.log(low)
        self._per_log = 1 / self.width
        self.log_edges = (
            *(self._log_low + self.width * i for i in range(inner)),
            math.log(high),
            math.log(beyond),
        )
        self.edges = tuple(map(math.exp, self.log_edges))
        # The mean of a value that is uniform in log inside its bin.
        self.means = tuple(
            (b - a) / math.log(b / a) for a, b in zip(self.edges, self.edges[1:], strict=False)
        )
        self._smears = tuple(
            tuple(self._smear(place + (part + 0.5) / _PLACES - 0.5, blur) for part in range(_PLACES))
            for place in range(inner)
        )

    def _smear(self, centre: float, blur: float) -> Smear:
        """Never into the overflow, never out of the grid."""
        first = max(0, math.floor(centre - 2.5 * blur + 0.5))
        last = min(self.bins - 2, math.ceil(centre + 2.5 * blur - 0.5))
        raw = [math.exp(-0.5 * ((i - centre) / blur) ** 2) for i in range(first, last + 1)]
        total = sum(raw)
        return tuple((first + i, x / total) for i, x in enumerate(raw))

    def index(self, value: float) -> int:
        """The bin that holds `value`."""
        if value >= self.high:
            return self.bins - 1
        if value <= self.low:
            return 0
        return min(int((math.log(value) - self._log_low) * self._per_log), self.bins - 2)

    def smear(self, value: float) -> Smear:
        """Where one observation of `value` lands."""
        if value >= self.high:
            return ((self.bins - 1, 1.0),)
        if value <= self.low:
            return self._smears[0][0]
        at = (math.log(value) - self._log_low) * self._per_log
        place = min(int(at), self.bins - 2)
        return self._smears[place][min(int((at - place) * _PLACES), _PLACES - 1)]

    def position(self, value: float) -> tuple[int, float]:
        """The bin of `value` and how far into it (in log) the value lies, 0 to 1."""
        if value <= self.low:
            return 0, 0.0
        if value >= self.edges[-1]:
            return self.bins - 1, 1.0
        place = bisect_right(self.edges, value) - 1
        left = self.log_edges[place]
        return place, (math.log(value) - left) / (self.log_edges[place + 1] - left)

    def value_at(self, place: int, part: float) -> float:
        """The inverse of `position`."""
        left = self.log_edges[place]
        return math.exp(left + part * (self.log_edges[place + 1] - left))


def lognormal(grid: Grid, *, median: float, sigma: float) -> list[float]:
    """Masses of a log-normal; what lies outside the grid is in its outer bins."""
    below = [
        0.5 * (1.0 + math.erf((edge - math.log(median)) / (sigma * math.sqrt(2.0))))
        for edge in grid.log_edges[1:-1]
    ]
    return [b - a for a, b in zip([0.0, *below], [*below, 1.0], strict=True)]


def spread(grid: Grid, masses: Sequence[float], after: float) -> Smear:
    """`masses` conditioned on a value above `after`, adding to one: where a censored observation may lie."""
    place, part = grid.position(after)
    kept = [0.0] * place + [masses[place] * (1 - part)] + list(masses[place + 1 :])
    total = sum(kept)
    if total <= 0.0:  # longer than anything seen: all that is known is that it is beyond
        kept = [0.0] * grid.bins
        kept[min(place + 1, grid.bins - 1)] = total = 1.0
    return [(i, x / total) for i, x in enumerate(kept) if x]


# Tool calls and the gaps that software makes: a millisecond to an hour. Longer than that is "does not return".
TOOL_SECONDS = Grid(low=1e-3, high=3600.0, bins=48, beyond=86_400.0)
# Waits for people: an answer may take a second or a week.
HUMAN_SECONDS = Grid(low=0.1, high=604_800.0, bins=48, beyond=2_592_000.0)
# Tokens, and steps: counts from one upwards.
TOKENS = Grid(low=1.0, high=200_000.0, bins=48, beyond=2_000_000.0)
# From 0.2, so that nothing left is well apart from one step left.
STEPS = Grid(low=0.2, high=10_000.0, bins=48, beyond=20_000.0)
