"""Counts of what was seen under a key: a decayed histogram on a grid, in one small array; and bounded tables of them.

One rule: a histogram only ever grows by whole observations of mass one, so that two of them, learned apart, merge
by addition. Decay is by observation, not by time, and costs nothing: each newcomer weighs more than the last.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping

from agentserve.core.forecast.grid import Grid, Smear

# One array of 32-bit floats a key: the masses of the bins, then their sum, then the weight of the newest.
# Weights grow until here, then all is scaled back; far inside what a 32-bit float can hold.
_WEIGHT_MAX = 1e12


def empty(bins: int) -> array[float]:
    masses = array("f", bytes(4 * (bins + 2)))
    masses[-1] = 1.0
    return masses


def add(masses: array[float], smear: Smear, growth: float) -> None:
    """Count one observation; all older ones lose weight by `growth` = 2 ** (1 / half-life)."""
    weight = masses[-1] * growth
    if weight > _WEIGHT_MAX:
        _scale_back(masses, weight)
        weight = 1.0
    masses[-1] = weight
    masses[-2] += weight
    for place, part in smear:
        masses[place] += weight * part


def add_to_each(nodes: Iterable[tuple[array[float] | None, float]], smear: Smear) -> None:
    """`add` to each of several histograms, given with their growths; written out because it is the hottest loop."""
    for masses, growth in nodes:
        if masses is None:
            continue
        weight = masses[-1] * growth
        if weight > _WEIGHT_MAX:
            _scale_back(masses, weight)
            weight = 1.0
        masses[-1] = weight
        masses[-2] += weight
        for place, part in smear:
            masses[place] += weight * part


def _scale_back(masses: array[float], weight: float) -> None:
    for i in range(len(masses) - 1):
        masses[i] /= weight


def count(masses: array[float]) -> float:
    """How many observations it is worth now."""
    return masses[-2] / masses[-1]


def merge(mine: array[float], other: array[float]) -> None:
    """Add what another gateway saw under the same key."""
    scale = mine[-1] / other[-1]
    for i in range(len(mine) - 1):
        mine[i] += other[i] * scale


class Table:
    """Masses by key, for at most `keys_max` keys; those not used for longest are forgotten first.

    Two generations instead of a linked list: a lookup moves a key to the young one, and when that is full the
    old one is dropped whole. It costs one dictionary entry a key where an LRU cache costs three, and forgetting
    is exact to within half of the bound.
    """

    __slots__ = ("_half", "_old", "_young", "bins")

    def __init__(self, grid: Grid, keys_max: int) -> None:
        self.bins = grid.bins
        self._half = max(1, keys_max // 2)
        self._young: dict[int, array[float]] = {}
        self._old: dict[int, array[float]] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: int) -> array[float] | None:
        """The masses of `key`, if anything was seen under it; reading keeps it from being forgotten."""
        found = self._young.get(key)
        if found is None and (found := self._old.pop(key, None)) is not None:
            self._keep(key, found)
        return found

    def at(self, key: int) -> array[float]:
        """The masses of `key`, to be added to."""
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is None:
                found = empty(self.bins)
            self._keep(key, found)
        return found

    def drop(self, key: int) -> None:
        """What was seen under `key` will not be asked for again."""
        if self._young.pop(key, None) is None:
            self._old.pop(key, None)

    def _keep(self, key: int, masses: array[float]) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = masses

    def items(self) -> Iterator[tuple[int, array[float]]]:
        yield from self._old.items()
        yield from self._young.items()

    def merge(self, other: Table) -> None:
        for key, theirs in other.items():
            mine = self.get(key)
            if mine is None:
                self.at(key)[:] = theirs
            else:
                merge(mine, theirs)

    def dump(self) -> dict[int, bytes]:
        """Plain data, oldest first."""
        return {key: masses.tobytes() for key, masses in self.items()}

    def load(self, dumped: Mapping[int, bytes]) -> None:
        size = 4 * (self.bins + 2)
        for key, raw in dumped.items():
            if len(raw) != size:
                raise ValueError(f"a histogram of {self.bins} bins takes {size} bytes, not {len(raw)}")
            self.at(key)[:] = array("f", raw)
