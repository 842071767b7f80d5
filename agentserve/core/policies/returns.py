"""When a program without a seat will be back, and when it should join the line ahead of that.

Rule: a time is given only where it is nearly sure: the client said so, or the tool always takes as long. What is done
when that time has come is the policy's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from agentserve.core.board import Board
from agentserve.core.ids import ProgramId
from agentserve.core.policies.certainty import Certainty
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.program import Program

EXPECTED_MAX = 10_000  # programs that said when they will be back


class Returns:
    """Programs that are expected, by when they join the line."""

    __slots__ = ("_board", "_certainty", "_expected", "_params")

    def __init__(self, board: Board, params: WorkingSetParams) -> None:
        self._board = board
        self._params = params
        self._certainty = Certainty()
        self._expected: list[tuple[float, ProgramId]] = []

    @property
    def next_at(self) -> float | None:
        """When the next of them joins the line."""
        return self._expected[0][0] if self._expected else None

    def expect(self, program: Program, joins_at: float) -> None:
        """It is not time yet."""
        if len(self._expected) < EXPECTED_MAX:
            heapq.heappush(self._expected, (joins_at, program.id))

    def due(self, now: float) -> Iterator[Program]:
        """Those whose time has come, and that still are in a gap without a seat."""
        while self._expected and self._expected[0][0] <= now:
            _, name = heapq.heappop(self._expected)
            program = self._board.programs.get(name)
            if program is not None and program.own is None and program.idle:
                yield program

    def at(self, program: Program, now: float) -> float | None:
        """When it will be back, if that is known and not long past."""
        returns_at = program.returns_at if program.returns_at is not None else self._foretold(program)
        if returns_at is None or self.expected_until(returns_at) < now:
            return None
        return returns_at

    def expected_until(self, returns_at: float) -> float:
        """How long past its time it is still waited for."""
        return returns_at + self._params.announced_s

    def joins_at(self, program: Program, returns_at: float) -> float:
        """When it must stand in the line to have its KV restored in time.

        No earlier: a seat that stands empty costs more than the wait that it saves (`lead_s_max` at 30 s made programs
        take 40% longer where all gaps were known).
        """
        return returns_at - min(self._restore_s(program), self._params.lead_s_max)

    def _restore_s(self, program: Program) -> float:
        """How long an engine would take to prefill its context."""
        engines = self._board.fleet.usable(program.model)
        return min((e.restore_s(program.context_tokens) for e in engines), default=0.0)

    def _foretold(self, program: Program) -> float | None:
        """When its gap ends, by its forecast."""
        if program.survival is None and not self._certainty.worth_asking(program):
            return None
        gap = self._board.gap(program)
        if gap is None or program.gap_started_at is None:
            return None
        middle = gap.quantile(0.5)
        spread = gap.quantile(0.8) - gap.quantile(0.2)
        # it has no seat, so nobody asks again soon; and it is as large as all else of it
        program.survival = None
        certain = spread <= max(self._params.certain_share * middle, 1.0)
        self._certainty.found(program, certain=certain)
        return program.gap_started_at + float(middle) if certain else None
