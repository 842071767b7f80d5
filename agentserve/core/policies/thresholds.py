"""The two thresholds, as shares of an engine's capacity: how far fresh seats are given, and how far seats may grow.

Rule: they are what the constants say, and only ever higher: where what is kept is of no use, since next to no program
comes back, or comes back to other text than it left. It is told of each step that arrives and that is over, and looks
at no engine.
"""

from __future__ import annotations

from agentserve.core.policies.anew import Anew
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.program import Program

RETURN_WEIGHT = 0.02  # of the newest step in the share of steps whose program had one before
ANSWERED_MAX = 1_000  # steps done, so many of whose programs may be new ones
RETURNS_FEW = 0.1  # below this share, the less programs return, the more are admitted


class Thresholds:
    """`admit` for fresh seats, `ceiling` for growth."""

    __slots__ = ("_anew", "_answered", "_params", "_returning", "admit", "ceiling")

    def __init__(self, params: WorkingSetParams, anew: Anew) -> None:
        self.admit = params.admit
        self.ceiling = params.ceiling
        self._params = params
        self._anew = anew
        self._returning = 1.0  # share of steps whose program had one before: at the start all are believed to
        # steps done since, whose programs could have come back: so many fresh ones are counted
        self._answered = 0

    def arrived(self, program: Program) -> None:
        """Where next to no program returns, nothing that is kept is worth protecting, and more are admitted.

        Programs that come all at once before any step of theirs is done say nothing of whether they will return.
        """
        if not program.steps_done:
            if not self._answered:
                return
            self._answered -= 1
        else:
            self._anew.came_back(program)
        self._returning += RETURN_WEIGHT * ((program.steps_done > 0) - self._returning)
        self._loosen()

    def finished(self, program: Program) -> None:
        """A step of it is over."""
        if self._answered < ANSWERED_MAX:
            self._answered += 1
        if program.steps_done > 1 and (program.moved or not program.carries):
            self._anew.returned(program)
            self._loosen()

    def _loosen(self) -> None:
        """Nor where they return to other text than they left; there the seated may grow past the ceiling too."""
        params, anew = self._params, self._anew.most
        if anew == 0.0 and self._returning >= RETURNS_FEW:  # nearly always
            self.admit, self.ceiling = params.admit, params.ceiling
            return
        few = max(1.0 - self._returning / RETURNS_FEW, anew)
        self.admit = params.admit * (1.0 + params.loose * few)
        self.ceiling = params.ceiling * (1.0 + params.loose * anew)
