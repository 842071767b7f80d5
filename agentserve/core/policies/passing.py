"""Who of a pipeline goes, when who is first in the line wants more of an engine than is free there.

Rule: room counts as rank. It is told who is first, looks at that program and at those of the same tenant that are first
in other roles, and seats nobody itself.

A role's prompt is held once by all that are in that role, so an engine that serves few roles at a time holds more
programs than one that serves all of them. Whose role is not there goes back in rank by what its prompt would take of
the engine; and who must wait for room lets others pass who rank behind by no more than its own room is worth, rather
than leave empty what is free already. Both are nothing where prompts are small beside an engine, and nobody is passed
for ever: who comes later ranks behind by the time that it came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agentserve.core.ids import EngineId
from agentserve.core.policies.order import Order
from agentserve.core.policies.rooms import Rooms
from agentserve.core.policies.seats import Book
from agentserve.core.policies.waiting import Line, Queued


class Passing:
    """Finds the best of them and its engine."""

    __slots__ = ("_books", "_line", "_order", "_rooms")

    def __init__(self, books: Mapping[EngineId, Book], line: Line, order: Order, rooms: Rooms) -> None:
        self._books = books
        self._line = line
        self._order = order
        self._rooms = rooms

    def find(self, first: Queued, now: float) -> tuple[Queued, Book] | None:
        """Who is to be seated where, if there is room for any that may go now."""
        heads = [queued for queued in self._line.heads(first, now) if queued.steps]
        best: tuple[Queued, Book] | None = None
        least: tuple[float, tuple[float, float, str]] | None = None
        for book in self._books.values():
            found = self._on(book, heads)
            if found is None:
                continue
            rank, queued = found
            program = queued.program
            own = program.own_tokens()
            order = (rank, self._rooms.placement(program, own, book))
            if least is None or order < least:
                best, least = (queued, book), order
        return best

    def _on(self, book: Book, heads: Sequence[Queued]) -> tuple[float, Queued] | None:
        """Who goes there first of those that fit, and its rank there."""
        capacity, prefixes = book.capacity, book.engine.prefixes
        ranked = []
        for queued in heads:
            missing = prefixes.missing(queued.program.prefix)
            ranked.append((queued.key + self._order.room_s(missing, capacity), queued.program.id, queued))
        last = math.inf
        for rank, _, queued in sorted(ranked, key=lambda r: r[:2]):
            if rank > last:
                break
            if book.engine.usable(queued.steps[0].model) and self._rooms.fits(queued.program, book):
                return rank, queued
            last = min(last, rank + self._order.room_s(self._rooms.need(queued.program, book), capacity))
        return None
