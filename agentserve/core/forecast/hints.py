"""Declared durations: what a client says a call will take, believed as far as that client was right before.

One rule: a hint is never taken at its word. What is learned per client is the ratio of the real time to the
declared one, so that a client that always declares a tenth is corrected, and one that declares at random is
hardly heard. It does not know how the other forecasts come about; it only sees how well they did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from agentserve.core.forecast.grid import Grid

CLIENTS_MAX = 4_096
HINTS_MAX = 16_384

_HALF_LIFE = 30.0
_PRIOR_COUNT = 6.0
# bins, of a double exponential: before anything is known, a hint is good to a factor of 1.5
_PRIOR_SPREAD = 1.2
_FORGETTING = 0.97
# A hinter starts with even odds against what was learned, and can neither win nor lose for good.
_LOG_ODDS_MAX = 6.0


@dataclass(slots=True, kw_only=True)
class Hinter:
    """One client's record: how its declarations related to what happened."""

    ratios: list[float]  # decayed counts of (bin of the real time) - (bin of the declared one)
    total: float = 0.0
    log_odds: float = 0.0  # for its hints against the learned forecast

    @property
    def trust(self) -> float:
        """The share of the forecast that its next hint gets."""
        return 1.0 / (1.0 + math.exp(-self.log_odds))


@dataclass(slots=True)
class Hints:
    """The declarations in force, and the record of each client that made them."""

    grid: Grid
    _hinters: dict[int, Hinter] = field(default_factory=dict)
    _declared: dict[int, tuple[float, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether any declaration is in force."""
        return bool(self._declared)

    def declare(self, key: int, client: int, seconds: float) -> None:
        """`client` says that what `key` names takes `seconds`."""
        if not 0.0 < seconds < math.inf:
            return
        self._declared.pop(key, None)
        while len(self._declared) >= HINTS_MAX:
            del self._declared[next(iter(self._declared))]
        self._declared[key] = (seconds, client)

    def find(self, *keys: int) -> tuple[float, int] | None:
        """The first declaration in force under `keys`: the seconds, and who said so."""
        for key in keys:
            if (found := self._declared.get(key)) is not None:
                return found
        return None

    def trust(self, client: int) -> float:
        hinter = self._hinters.get(client)
        return 0.5 if hinter is None else hinter.trust

    def masses(self, seconds: float, client: int) -> list[float]:
        """What the declaration alone would forecast, given this client's record."""
        bins = self.grid.bins
        at = self.grid.index(seconds)
        hinter = self._hinters.get(client)
        total = _PRIOR_COUNT + (hinter.total if hinter else 0.0)
        out = []
        for i in range(bins):
            prior = math.exp(-abs(i - at) / _PRIOR_SPREAD)
            seen = hinter.ratios[i - at + bins - 1] if hinter else 0.0
            out.append(_PRIOR_COUNT * prior / _PRIOR_MASS + seen)
        scale = 1.0 / max(sum(out), total * 1e-3)
        return [x * scale for x in out]

    def learn(self, declared_s: float, client: int, seconds: float, learned: float) -> None:
        """The call took `seconds`; `learned` is the probability that the forecast without hints gave its bin."""
        bins = self.grid.bins
        hinter = self._hinters.pop(client, None)
        if hinter is None:
            while len(self._hinters) >= CLIENTS_MAX:
                del self._hinters[next(iter(self._hinters))]
            hinter = Hinter(ratios=[0.0] * (2 * bins - 1))
        self._hinters[client] = hinter
        at, real = self.grid.index(declared_s), self.grid.index(seconds)
        odds = math.log((self.masses(declared_s, client)[real] + 1e-6) / (learned + 1e-6))
        hinter.log_odds = max(-_LOG_ODDS_MAX, min(_LOG_ODDS_MAX, _FORGETTING * hinter.log_odds + odds))
        decay = 2.0 ** (-1.0 / _HALF_LIFE)
        hinter.ratios = [x * decay for x in hinter.ratios]
        hinter.total = hinter.total * decay + 1.0
        offset = real - at + bins - 1
        for place, share in ((offset - 1, 0.25), (offset, 0.5), (offset + 1, 0.25)):
            hinter.ratios[min(max(place, 0), 2 * bins - 2)] += share

    def merge(self, other: Hints) -> None:
        """Add other gateways' records; declarations in force belong to the gateway that took them."""
        for client, theirs in other._hinters.items():
            mine = self._hinters.get(client)
            if mine is None:
                self._hinters[client] = Hinter(
                    ratios=list(theirs.ratios), total=theirs.total, log_odds=theirs.log_odds
                )
                continue
            both = mine.total + theirs.total
            mine.log_odds = (mine.log_odds * mine.total + theirs.log_odds * theirs.total) / max(both, 1e-9)
            mine.ratios = [a + b for a, b in zip(mine.ratios, theirs.ratios, strict=True)]
            mine.total = both

    def dump(self) -> dict[int, tuple[list[float], float, float]]:
        return {client: (h.ratios, h.total, h.log_odds) for client, h in self._hinters.items()}

    def load(self, dumped: Mapping[int, tuple[list[float], float, float]]) -> None:
        for client, (ratios, total, log_odds) in dumped.items():
            if len(ratios) != 2 * self.grid.bins - 1:
                raise msgspec.ValidationError("a hinter's record does not fit the grid")
            self._hinters[client] = Hinter(ratios=list(ratios), total=total, log_odds=log_odds)


_PRIOR_MASS = (1 + math.exp(-1 / _PRIOR_SPREAD)) / (1 - math.exp(-1 / _PRIOR_SPREAD))
