"""How a program comes to stand in the line: for which engines, with whom, and ahead of its return where that is known.

Rule: who joins for a step that is here stands at once; who is only expected, and has something to be restored, stands
when the time to restore it has come. Nobody is seated here.
"""

from __future__ import annotations

from collections.abc import Callable

from agentserve.core.policies.anew import Anew
from agentserve.core.policies.order import Order
from agentserve.core.policies.returns import Returns
from agentserve.core.policies.rooms import Rooms
from agentserve.core.policies.waiting import NO_ROLE, SMALL, Line, Queued
from agentserve.core.program import Program, Step


class Joining:
    """Ranks programs and puts them into the line."""

    __slots__ = ("_anew", "_arm", "_line", "_order", "_returns", "_rooms", "expected")

    def __init__(
        self,
        line: Line,
        order: Order,
        anew: Anew,
        rooms: Rooms,
        returns: Returns,
        arm: Callable[[float], None],
    ) -> None:
        self._line = line
        self._order = order
        self._anew = anew
        self._rooms = rooms
        self._returns = returns
        self._arm = arm  # calls `those_due` at that time
        self.expected = 0.0  # how many joined ahead of their return

    def step(self, step: Step, now: float) -> Queued:
        """A step waits for its program's seat."""
        program, queued = step.program, step.program.own
        engines = self._rooms.serving(step.model)
        if isinstance(queued, Queued) and not queued.steps and queued.engines != engines:
            self._line.leave(program)  # it was expected to want another model
            queued = None
        if not isinstance(queued, Queued):
            queued = self._line.join(program, self._order.key(program), now, engines, self.role(program))
        queued.steps.append(step)
        return queued

    def role(self, program: Program) -> int:
        """With whom it stands."""
        if self._anew.keeps_nothing(program):
            return program.prefix[0].hash if program.prefix else NO_ROLE
        return SMALL if self._rooms.is_small(program) else NO_ROLE

    def ahead(self, program: Program, now: float) -> None:
        """It has no seat, and when it will be back is known: into the line in time to restore its KV."""
        if not program.carries or self._anew.keeps_nothing(program):
            return  # there is nothing to restore for what comes next
        returns_at = self._returns.at(program, now)
        if returns_at is None:
            return
        joins_at = self._returns.joins_at(program, returns_at)
        if joins_at > now:
            self._returns.expect(program, joins_at)
            self._arm(joins_at)
            return
        self.expected += 1
        queued = self._line.join(program, self._order.key(program), now, self._rooms.serving(program.model))
        queued.expected_until = self._returns.expected_until(returns_at)

    def those_due(self, now: float) -> None:
        """Whose time has come joins."""
        for program in self._returns.due(now):
            self.ahead(program, now)
        if self._returns.next_at is not None:
            self._arm(self._returns.next_at)
