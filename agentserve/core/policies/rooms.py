"""Where a program can be seated: which engines serve it, which have room, and which of these is the best.

Rule: it only looks. What it finds full may be made room in by others, who then ask again. How much room an engine has
is worked out once after each change of its load: it is asked at every event, and for most engines nothing has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agentserve.core.board import Board
from agentserve.core.fleet import KV_TOKENS_ASSUMED
from agentserve.core.ids import EngineId
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.seats import Book
from agentserve.core.policies.thresholds import Thresholds
from agentserve.core.policies.waiting import Engines
from agentserve.core.program import Program
from agentserve.errors import InvariantBroken

MODELS_MAX = 1_000  # whose engines are remembered
PACKED_FROM = 0.5  # of an engine's capacity: below it programs are spread by number, above by what they hold


class Found(NamedTuple):
    """Engines with room, and those without whose idle seats were not looked through lately, the emptiest first."""

    roomy: list[Book]
    full: list[Book]


class Rooms:
    """The engines, as who wants a seat sees them."""

    __slots__ = ("_admit", "_board", "_books", "_params", "_served", "_thresholds")

    def __init__(
        self, board: Board, books: Mapping[EngineId, Book], thresholds: Thresholds, params: WorkingSetParams
    ) -> None:
        self._board = board
        self._books = books
        self._thresholds = thresholds
        self._params = params
        self._served: dict[str, Engines] = {}  # by model
        self._admit = thresholds.admit  # with which the books' rooms were found

    def engines_changed(self) -> None:
        """Which engines serve which models may be another matter now."""
        self._served.clear()

    def serving(self, model: str) -> Engines:
        """All engines that serve it, those that are away too; who shares them stands in one line."""
        engines = self._served.get(model)
        if engines is None:
            if len(self._served) >= MODELS_MAX:
                self._served.clear()
            fleet = self._board.fleet
            engines = tuple(e.id for e in fleet if not e.models or not model or model in e.models)
            self._served[model] = engines
        return engines

    def is_small(self, program: Program) -> bool:
        """Is a seat of it next to nothing on every engine? One that is offered tools grows, however it begins."""
        if program.tools_offered:
            return False
        own = program.own_tokens()
        return all(own + book.margin <= book.small_max for book in self._books.values())

    def look(self, program: Program, model: str, now: float) -> Found:
        """All engines that serve the model, with room for the program or without."""
        own = program.own_tokens()
        swept_since = now - self._params.sweep_s
        found = Found([], [])
        self._as_admitted()
        for book in self._books.values():
            room = book.room
            if room is None:
                room = self._look_up(book)
            if own + book.margin > room and book.seated:
                # by far the most common, and said before anything else is looked at
                if book.swept_at <= swept_since and book.engine.usable(model):
                    found.full.append(book)
            elif book.engine.usable(model):
                if self._takes(book, program, own, room):
                    found.roomy.append(book)
                elif book.swept_at <= swept_since:
                    found.full.append(book)
        if not found.roomy and len(found.full) > 1:
            found.full.sort(key=lambda b: b.load / b.capacity)
        return found

    def aside(self, program: Program, model: str) -> Book | None:
        """The best engine with room for a small program in what is set aside for these."""
        own, params = program.own_tokens(), self._params
        roomy = []
        for book in self._books.values():
            room = min(
                params.small_room * book.capacity - book.aside, params.ceiling * book.capacity - book.load
            )
            if book.engine.usable(model) and self._takes(book, program, own, room):
                roomy.append(book)
        return self.best(program, roomy) if roomy else None

    def fits(self, program: Program, book: Book) -> bool:
        """Is there room for a seat of it? A program too large for any engine may have one alone."""
        own = program.own_tokens()
        self._as_admitted()
        return self._takes(book, program, own, self._look_up(book))

    def _as_admitted(self) -> None:
        """With another threshold, every engine has another room."""
        if self._admit != self._thresholds.admit:
            self._admit = self._thresholds.admit
            for book in self._books.values():
                book.room = None

    def _look_up(self, book: Book) -> float:
        if book.room is None:
            book.room = self._room(book, self._admit)
        return book.room

    def need(self, program: Program, book: Book) -> int:
        """Tokens that a seat of it would take there now, its leading segments only where they are not there."""
        own = program.own_tokens()
        return own + book.engine.prefixes.missing(program.prefix)

    def _room(self, book: Book, admit: float) -> float:
        """Tokens that fresh seats may still take there.

        What is kept free is for the seated to grow into. Where few fit, the next one is stopped half a seat short of
        the threshold on average, and that is free as well: so much less need be kept, if never beyond the ceiling.
        """
        params, capacity, load = self._params, book.capacity, book.load
        # or a flood of small ones would keep the others out for ever
        load -= min(book.aside, int(params.small_room * capacity))
        seats = len(book.seated)  # guests load it too, and have none
        large = load - params.coarse_from * capacity * seats
        if seats and large > 0 and admit < params.ceiling:
            stopped_short = params.coarse * large / seats
            return min(admit * capacity + stopped_short, params.ceiling * capacity) - load
        return admit * capacity - load

    def _takes(self, book: Book, program: Program, own: int, room: float) -> bool:
        """Is this room enough for what is the program's `own`, and its share of the rest?"""
        if not book.seated:
            return True
        if own + book.margin > room or book.held or book.engine.seqs_free() <= 0:
            return False
        return self._need(program, own, book) <= room

    def best(self, program: Program, roomy: list[Book]) -> Book:
        """Home while its KV is there, else where most is free."""
        if len(roomy) == 1:
            return roomy[0]
        home = next((b for b in roomy if b.engine.id == program.home), None)
        if (
            home is not None
            and self._board.fleet.expected_cached(program, home.engine) > program.shared_tokens
        ):
            return home
        own = program.own_tokens()
        return min(roomy, key=lambda b: self.placement(program, own, b))

    def _need(self, program: Program, own: int, book: Book) -> int:
        """Tokens that its seat there would add; `own` of them, and a margin, are its alone."""
        return max(own + book.margin, 0) + book.engine.prefixes.missing(program.prefix)

    def placement(self, program: Program, own: int, book: Book) -> tuple[float, float, str]:
        """The smaller, the better is this engine for a seat of its own `own` tokens."""
        engine = book.engine
        filled = (book.load + self._need(program, own, book)) / book.capacity
        if engine.kv_tokens >= KV_TOKENS_ASSUMED or filled < PACKED_FROM:
            return (len(book.seated) / engine.speed, filled, engine.id)
        return (1e6 + filled / engine.speed, 0.0, engine.id)

    def check(self) -> None:
        """What is remembered of an engine's room is what it has."""
        for book in self._books.values():
            if book.room is not None and book.room != self._room(book, self._admit):
                raise InvariantBroken(f"{book.engine.id}: its room is not {book.room} any more")
