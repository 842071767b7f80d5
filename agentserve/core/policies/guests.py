"""Guests: steps that cannot go where their program has its seat, or waits for one, as that engine cannot take them.

Rule: a guest is charged to the engine that it is sent to, while it is there; it takes no seat and changes none.
Agents ask a second, smaller model for titles and summaries between two steps of their own: that must cost them neither
their seat nor their place in the line.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentserve.core.board import Board
from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId, StepId
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.seats import Book
from agentserve.core.program import Step


class Guests:
    """Those that wait, by arrival; those that were sent stand on the engines' books."""

    def __init__(self, board: Board, params: WorkingSetParams, books: Mapping[EngineId, Book]) -> None:
        self._board = board
        self._params = params
        self._books = books
        self._waiting: dict[StepId, Step] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, step: Step) -> bool:
        """Does it wait here?"""
        return step.id in self._waiting

    def come(self, step: Step, now: float) -> None:
        """A step to be sent beside its program's seat: at once where there is room."""
        self._waiting[step.id] = step
        if not self._place(step, now):  # and the caller looks again soon
            self._board.wait(step, "no_seat", detail="another model than its program's seat has")

    def leave(self, step: Step, engine: Engine | None) -> bool:
        """A step is over or to be sent anew; whether it was a guest."""
        if engine is None:
            return self._waiting.pop(step.id, None) is not None
        book = self._books.get(engine.id)
        tokens = book.guests.pop(step.id, None) if book is not None else None
        if book is None or tokens is None:
            return False
        book.add(-tokens)
        return True

    def place(self, now: float) -> None:
        """There may be room now."""
        for step in list(self._waiting.values()):
            self._place(step, now)

    def _place(self, step: Step, now: float) -> bool:
        overdue = now - step.arrived_at >= self._params.guest_wait_s_max  # then the engine may queue it
        tokens = step.prompt_tokens + int(step.output_tokens)
        room = [
            book
            for book in self._books.values()
            if book.engine.usable(step.model) and (overdue or self._fits(tokens, book))
        ]
        if not room:
            return False
        book = min(room, key=lambda b: (b.load / b.capacity, b.engine.id))
        del self._waiting[step.id]
        book.guests[step.id] = tokens
        book.add(tokens)
        self._board.dispatch(step, book.engine, now, "guest")
        return True

    def _fits(self, tokens: int, book: Book) -> bool:
        if not book.engine.steps:
            return True
        return book.load + tokens <= self._params.ceiling * book.capacity and book.engine.seqs_free() > 0
