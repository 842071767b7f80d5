"""Who goes first: each program's rank in the line and among the seated.

Rule: a rank is static, so that a heap holds it: start, plus how much is left, by class and deadline. It reads the
program and its forecasts alone; who is seated, and where, is not known here.
"""

from __future__ import annotations

from agentserve.core.board import CLASS_RANK, Board
from agentserve.core.policies.anew import Anew
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.seats import Seat
from agentserve.core.program import Program, Step

STEP_WEIGHT = 0.01  # of the newest gap in the mean
RUN_S = 4.0  # that a step is taken to run
ROOM_STEPS = 100.0  # of rank, that the room of a whole engine is worth to those who keep nothing there


class Order:
    """Smaller goes first, in seconds of arrival."""

    __slots__ = ("_anew", "_board", "_params", "_step_s")

    def __init__(self, board: Board, params: WorkingSetParams, anew: Anew) -> None:
        self._board = board
        self._params = params
        self._anew = anew
        self._step_s = 2 * RUN_S  # mean seconds from one step of a program to its next

    def gap_ended(self, gap_s: float) -> None:
        """A program is back in its seat after so long."""
        self._step_s += STEP_WEIGHT * (gap_s + RUN_S - self._step_s)

    def key(self, program: Program) -> float:
        """Its rank now."""
        params = self._params
        left = self._board.foresight.steps_left(program)
        left_s = left * self._step_s
        if self._anew.keeps_nothing(program):
            left_s = self._anew.steps_left(program, left) * self._step_s
            key = program.created_at + params.beta * left_s * self._anew.work(program)
        else:
            # one that has only begun holds nothing yet, but its prompt says how much it will
            held = (
                program.context_tokens - program.shared_tokens if program.steps_done else program.own_tokens()
            )
            key = program.created_at + params.beta * left_s + params.gamma * max(held, 0) / 1000
        key += params.class_step_s * (CLASS_RANK[program.priority] - 1)
        if program.deadline_at is not None:
            key = min(key, program.deadline_at - left_s)
        return key

    def room_s(self, tokens: int, capacity: float) -> float:
        """How much of rank so much of an engine's room is worth, where it is held for a step and no longer."""
        return self._params.beta * ROOM_STEPS * self._step_s * tokens / capacity

    def seat_key(self, program: Program) -> float:
        """The rank of its seat as it is now; forecasts are asked only when a rank is needed."""
        seat: Seat = program.own
        if seat.stale:
            seat.key = self.key(program)
            seat.stale = False
        return seat.key

    def step_rank(self, step: Step) -> tuple[float, str]:
        """Of a step whose program is seated."""
        return (self.seat_key(step.program), step.id)
