"""How much of what a busy workflow does teaches its forecasts: all of it up to a rate, above that a random share.

Rule: a draw knows nothing of what it decides about, so that what is learned of the share holds for the whole. The
draws are a function of the calls and of `now` alone: the same events draw the same. Only forecasts may learn from a
share; what is counted, owed or kept is never drawn.
"""

from __future__ import annotations

import random

from agentserve.core.program import Program

# of one workflow: a histogram of a hundred bins learns no more from the two-hundred-and-first
STEPS_PER_S = 200.0
WINDOW_S = 1.0
KINDS_MAX = 4_096


class _Rate:
    """A workflow's steps in the present window, and the share that follows from the one before."""

    __slots__ = ("seen", "share", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.seen = 0
        self.share = 1.0


class Share:
    """Asked by `of_step` of each step that ends, by `of_program` of each program that is over."""

    def __init__(self, steps_per_s: float = STEPS_PER_S, *, seed: int = 1) -> None:
        self._steps_per_s = steps_per_s
        self._rates: dict[tuple[str, str | None], _Rate] = {}
        self._rng = random.Random(seed)
        self.left_out = 0  # steps that taught nothing

    def of_step(self, program: Program, now: float) -> bool:
        """One more step of its workflow ended: does it teach?"""
        kind = program.tenant, program.workflow
        rate = self._rates.get(kind)
        if rate is None:
            if len(self._rates) >= KINDS_MAX:
                del self._rates[next(iter(self._rates))]
            rate = self._rates[kind] = _Rate(now)
        elapsed_s = now - rate.since
        if elapsed_s >= WINDOW_S:
            quiet = elapsed_s > 2 * WINDOW_S  # how busy it was before says nothing any more
            rate.share = 1.0 if quiet else min(self._steps_per_s * elapsed_s / max(rate.seen, 1), 1.0)
            rate.since, rate.seen = now, 0
        rate.seen += 1
        if rate.share >= 1.0 or self._rng.random() < rate.share:
            return True
        self.left_out += 1
        return False

    def of_program(self, program: Program) -> bool:
        """A program is over: does it teach how long such programs are?"""
        rate = self._rates.get((program.tenant, program.workflow))
        return rate is None or rate.share >= 1.0 or self._rng.random() < rate.share
