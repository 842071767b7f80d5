"""The live programs, those first that were not heard of for longest.

Rule: they are opened here, and found here when they are to be forgotten; what that means for who waits and for what is
kept is the scheduler's. Nothing is scanned: who is idle too long stands at the old end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from agentserve.core import events as ev
from agentserve.core.board import CLASS_RANK, Board
from agentserve.core.program import Program

EXPIRED_AT_ONCE_MAX = 1000


class Register:
    """Opens programs, and notes when each was last heard of."""

    __slots__ = ("_board", "_forget")

    def __init__(self, board: Board, forget: Callable[[Program, float, str], None]) -> None:
        self._board = board
        self._forget = forget

    def heard_of(self, event: ev.StepArrived | ev.ProgramDeclared, now: float) -> Program:
        """The program that an event names, opened if it is new, with what the event asks for it."""
        program = self._board.programs.get(event.program)
        if program is None:
            program = self._open(event, now)
        if event.workflow is not None:
            program.workflow = event.workflow
        if event.priority is not None:  # a tenant may ask for any class up to its ceiling
            ceiling = self._board.share(program.tenant).priority_max
            program.priority = max(event.priority, ceiling, key=CLASS_RANK.__getitem__)
        if event.deadline_s is not None:
            program.deadline_at = program.created_at + event.deadline_s
        self.touch(program, now)
        return program

    def _open(self, event: ev.StepArrived | ev.ProgramDeclared, now: float) -> Program:
        programs = self._board.programs
        if len(programs) >= self._board.limits.live_programs_max:
            oldest = next((p for p in programs.values() if p.idle), None)
            if oldest is not None:
                self._forget(oldest, now, "forgotten")
        parent = event.parent
        program = Program(
            id=event.program, tenant=event.tenant, created_at=now, parent=parent, last_seen_at=now
        )
        above = programs.get(parent) if parent is not None else None
        if above is not None:
            program.priority = above.priority
            program.deadline_at = above.deadline_at
        programs[event.program] = program
        return program

    def touch(self, program: Program, now: float) -> None:
        """It was heard of."""
        program.last_seen_at = now
        self._board.programs.move_to_end(program.id)

    def idle_at(self) -> float:
        """When the first of them will have been idle too long; there is one."""
        board = self._board
        return next(iter(board.programs.values())).last_seen_at + board.limits.program_idle_s

    def idle_too_long(self, now: float) -> list[Program]:
        """Those of which nothing was heard, and nothing waits or runs; so many at once."""
        programs, idle_s = self._board.programs, self._board.limits.program_idle_s
        over: list[Program] = []
        if not programs or self.idle_at() > now:
            return over
        for program in list(itertools.islice(programs.values(), EXPIRED_AT_ONCE_MAX)):
            if program.last_seen_at + idle_s > now:
                break
            if program.idle:
                over.append(program)
            else:
                self.touch(program, now)  # it waits or runs: that is being heard of
        return over
