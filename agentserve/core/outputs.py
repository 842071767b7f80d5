"""Forecasts of outputs, held against what outputs turned out to be.

Rule: forecasts that are right on the whole pass unchanged, however wrong each may be. Where they are too long on the
whole they would keep room from those who wait, which costs far more than a seat that was given too small: then none is
believed to be longer than any output that was seen, and all are scaled down to the mean of what was.
"""

from __future__ import annotations

SEEN_MIN = 50  # outputs, before which forecasts are believed
SEEN_MOST = 1_000  # that count in the means
TOO_LONG = 1.25  # times what was


class Outputs:
    """Means of what was said and of what was."""

    __slots__ = ("_asked", "_capped", "_longest", "_said", "_seen", "_was")

    def __init__(self) -> None:
        self._asked = 0
        self._said = 0.0  # mean forecast
        self._capped = 0.0  # the same, none longer than any output
        self._seen = 0
        self._was = 0.0  # mean output
        self._longest = 0.0

    def believed(self, said: float) -> float:
        """This forecast, or as much of it as is to be believed."""
        capped = said if said < self._longest else self._longest
        if self._seen:
            self._asked += self._asked < SEEN_MOST
            self._said += (said - self._said) / self._asked
            self._capped += (capped - self._capped) / self._asked
        if self._seen < SEEN_MIN or self._said <= TOO_LONG * self._was:
            return said
        return capped * self._was / self._capped if self._capped > self._was else capped

    def finished(self, tokens: int) -> None:
        """An output is whole, and was so long."""
        self._seen += self._seen < SEEN_MOST
        self._was += (tokens - self._was) / self._seen
        if tokens > self._longest:
            self._longest = tokens
