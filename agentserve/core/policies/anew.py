"""Programs whose prompts each begin anew, as in pipelines of fixed roles: how many of them there are, and how large.

Rule: it is told of each step that a program came back with, when it arrives and when it is over, and only counts; what
is admitted, kept or put in front because of it is the policy's. It knows no engine and no clock.

What such a program leaves behind is never read again, so it is not its context that makes it dear, but what each of its
steps holds while it runs: half the size, and the same steps left are half the work. And its length is that of its
pipeline: while none of them has ended, who has gone furthest is nearest to the end. Agents are otherwise: of those, who
has gone far is likely to go on for long.
"""

from __future__ import annotations

from agentserve.core.program import Program

CARRY_WEIGHT = 0.05  # of the newest step in the share of those that could find what their program had left
# that did, before any was seen: no more, since all programs of a pipeline may start at once
CARRIES_ASSUMED = 1
CARRIES_FEW = 0.3  # below this share, the less is found, the more are admitted
SIZE_WEIGHT = 0.05  # of the newest step in their mean size
SIZE_SHARE = 0.5  # of its work that goes by its size: all of it would make the largest wait for everyone
STEPS_MOST = 12.0  # of a pipeline of which nothing else is known


class Anew:
    """What steps find of what their programs left."""

    __slots__ = ("_carrying", "_mean_tokens", "_seen")

    def __init__(self) -> None:
        self._carrying = 1.0  # at the start, all are believed to find it
        self._seen = CARRIES_ASSUMED
        self._mean_tokens = 0.0  # that a step of those that find nothing holds of its own

    def came_back(self, program: Program) -> None:
        """A step of a program that had one before is here: a prompt that begins with other words finds nothing."""
        self._saw(carries=not program.moved)

    def returned(self, program: Program) -> None:
        """It is over, and an engine may have found something all the same."""
        if program.carries:
            if program.moved:
                self._saw(carries=True)
            return
        tokens = program.context_tokens - _fixed(program)
        self._mean_tokens += (SIZE_WEIGHT if self._mean_tokens else 1.0) * (tokens - self._mean_tokens)

    def _saw(self, *, carries: bool) -> None:
        self._seen += 1
        weight = 1.0 / self._seen  # a plain mean at first, then one that forgets
        if weight < CARRY_WEIGHT:
            weight = CARRY_WEIGHT
        self._carrying += weight * (carries - self._carrying)

    @property
    def most(self) -> float:
        """How nearly all that return begin anew: 0 while a fair share does not, 1 when all do."""
        return 1.0 - self._carrying / CARRIES_FEW if self._carrying < CARRIES_FEW else 0.0

    @property
    def nearly_all(self) -> bool:
        """Do nearly all here begin anew?"""
        return self._carrying < CARRIES_FEW

    def keeps_nothing(self, program: Program) -> bool:
        """Nearly all here begin anew, and it does, or has not yet come back to show that it is another kind."""
        return self.nearly_all and (not program.carries or program.steps_done < 2)

    def steps_left(self, program: Program, foretold: float) -> float:
        """No more than a pipeline has left after its steps, whatever is foretold of agents."""
        return min(foretold, max(STEPS_MOST - program.steps_done, 1.0))

    def work(self, program: Program) -> float:
        """How much work a step of it is, over the mean of those that begin anew."""
        if not self._mean_tokens:
            return 1.0
        own = max(program.footprint(0) - _fixed(program), 0)
        return 1.0 - SIZE_SHARE + SIZE_SHARE * own / self._mean_tokens


def _fixed(program: Program) -> int:
    """Tokens of its role's own prompt: of all that it begins with, what the other programs of that role read too."""
    return program.prefix[0].tokens if program.prefix else 0
