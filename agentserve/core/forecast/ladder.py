"""A ladder of keys from coarse to fine, each rung shrunk towards the one above: the plain forecaster.

One rule: a rung with few observations says what the rung above says. It knows numbers and keys only; what they
stand for (waits for people, output tokens, steps to come) is its owner's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentserve.core.forecast.grid import Grid, spread
from agentserve.core.forecast.masses import Table, add
from agentserve.core.forecast.survival import Survival


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How fast a key forgets, and how much it trusts what stands above it."""

    half_life: float  # in observations of the key
    strength: float  # pseudo-observations of the rung above

    @property
    def growth(self) -> float:
        """What the newest observation weighs, relative to the one before."""
        growth: float = 2.0 ** (1.0 / self.half_life)
        return growth


class Ladder:
    """Histograms under keys, asked and told with one key per rung."""

    __slots__ = ("_growths", "_prior", "_table", "grid", "rungs")

    def __init__(
        self, grid: Grid, rungs: Sequence[Rung], *, keys_max: int, prior: Sequence[float] | None = None
    ) -> None:
        self.grid = grid
        self.rungs = tuple(rungs)
        self._growths = tuple(rung.growth for rung in rungs)
        # what is believed before anything was seen: these masses, or that every bin is as likely
        self._prior = list(prior) if prior is not None else [1.0 / grid.bins] * grid.bins
        self._table = Table(grid, keys_max)

    def __len__(self) -> int:
        return len(self._table)

    def masses(self, keys: Sequence[int]) -> list[float]:
        """The forecast for `keys`, coarse to fine; they may stop before the last rung."""
        out: Sequence[float] = self._prior
        for key, rung in zip(keys, self.rungs, strict=False):
            out = self.narrowed(out, key, rung)
        return list(out)

    def narrowed(self, above: Sequence[float], key: int, rung: Rung) -> Sequence[float]:
        """What `above` says, corrected by what was seen under one more key."""
        seen = self._table.get(key)
        if seen is None:
            return above
        scale = 1.0 / (seen[-2] + rung.strength * seen[-1])
        share = rung.strength * seen[-1] * scale
        return [scale * x + share * y for x, y in zip(seen, above, strict=False)]

    def forecast(self, keys: Sequence[int], *, elapsed: float = 0.0) -> Survival:
        return Survival(self.grid, self.masses(keys), elapsed_s=elapsed)

    def learn(self, keys: Sequence[int], value: float, *, censored: bool = False) -> None:
        """Count one outcome; a censored one as lying anywhere above `value`, as the forecast has it."""
        smear = spread(self.grid, self.masses(keys), value) if censored else self.grid.smear(value)
        for key, growth in zip(keys, self._growths, strict=False):
            add(self._table.at(key), smear, growth)

    def forget(self, key: int) -> None:
        """Nobody will ask with this key again."""
        self._table.drop(key)

    def merge(self, other: Ladder) -> None:
        self._table.merge(other._table)

    def dump(self) -> dict[int, bytes]:
        return self._table.dump()

    def load(self, dumped: dict[int, bytes]) -> None:
        self._table.load(dumped)
