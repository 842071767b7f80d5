"""Is an engine to be trusted with another step? Judged from traffic and from probes alike.

Rule: time is an argument, and nothing here waits. Closed: all is well. Open: it failed several times in a row and
gets no traffic. Half-open: its pause is over and one probe may find out; the pause doubles when that fails too.

Probes decide sooner than traffic: many steps can fail at one moment for one reason, and a probe that succeeds right
after says that the engine lives. Only traffic that fails on and on, whatever the probes say, opens it by itself.
"""

from __future__ import annotations

from enum import StrEnum

FAILURES_MAX = 3  # probes in a row
STEPS_FAILED_MAX = 50  # steps in a row, with none that succeeded between
PAUSE_S_MIN = 0.5
PAUSE_S_MAX = 15.0


class State(StrEnum):
    """Low cardinality: it labels metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """One engine's."""

    __slots__ = ("_failures_max", "_pause_s", "failures", "opened_at", "reason", "state", "steps_failed")

    def __init__(self, *, failures_max: int = FAILURES_MAX) -> None:
        self._failures_max = failures_max
        self._pause_s = PAUSE_S_MIN
        self.failures = 0  # probes, in a row
        self.steps_failed = 0  # in a row
        self.opened_at = 0.0
        self.reason = ""
        self.state = State.CLOSED

    def step_failed(self, now: float, reason: str) -> bool:
        """A step failed on the engine. True when that opened the breaker just now."""
        self.steps_failed += 1
        self.reason = reason
        if self.state is State.CLOSED and self.steps_failed >= STEPS_FAILED_MAX:
            self.steps_failed = 0
            self._pause_s = PAUSE_S_MIN
            self._open(now)
            return True
        return False

    def step_succeeded(self) -> None:
        """A step's reply came whole."""
        self.steps_failed = 0

    def failed(self, now: float, reason: str) -> bool:
        """A probe failed. True when that opened the breaker just now."""
        self.failures += 1
        self.reason = reason
        if self.state is State.HALF_OPEN:
            self._pause_s = min(self._pause_s * 2.0, PAUSE_S_MAX)
            self._open(now)
        elif self.state is State.CLOSED and self.failures >= self._failures_max:
            self._pause_s = PAUSE_S_MIN
            self._open(now)
            return True
        return False

    def succeeded(self) -> bool:
        """A probe was answered. True when that closed the breaker just now."""
        reopened = self.state is not State.CLOSED
        self.failures = 0
        self.reason = ""
        self._pause_s = PAUSE_S_MIN
        self.state = State.CLOSED
        return reopened

    def probe_in_s(self, now: float) -> float:
        """Seconds until an open breaker lets one probe through; 0 when it may go now."""
        return max(self.opened_at + self._pause_s - now, 0.0) if self.state is State.OPEN else 0.0

    def probing(self) -> None:
        """The one probe is on its way."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self.opened_at = now
