"""Ours: programs, not steps, are admitted, each with a seat for its whole working set on one engine.

Intent: end the thrash. The contexts of all seated programs, those in tool gaps included, fit the engine's KV, so
a step that returns finds its prefix. Programs without a seat wait here, in an order of their own: fair between
tenants, then by start and by how much is left of them.

Reads: prompt and output tokens, shared prefixes, gap survival, steps left, tenants' weights, engine capacity.

How it decides
- A fresh seat is given up to `admit` of an engine's KV, early starts and small needs first; the seated may grow to
  `ceiling`. Where fewer than five fit, what the last one leaves free counts as room to grow (`rooms`). The cliff
  beyond is one-sided (a little too much doubles completion times, a little too few costs little), so nothing adaptive
  ever passes the ceiling, but where next to no step finds what its program left, as in pipelines of fixed roles:
  nothing is lost by it there, the engine's own queue keeps it full, and gaps hold no seat. Of such programs who has
  gone furthest and has the least work goes first, but for what the room costs in which its role's prompt is held too
  (`passing`).
- Programs without tools that need next to nothing, as questions do, wait for no large one: a little of the room to
  grow is theirs. It is not charged to the others, whom a flood of small ones would else keep out for ever.
- A seat in a gap is a pin: kept while the program's best rate of return times its prefill saved exceeds the price of
  the memory (`core.pins`). The price is zero while nobody waits; else it is what the waiting would do with it: `mu` x
  the rate at which the engine could fill its KV anew. Workflows whose pins do not pay lose their seats in every gap.
- A step whose model its program's seat does not serve goes elsewhere: the main line of the program with its seat, any
  other step as a guest (`guests`). Who waits for full engines holds up nobody who may go to others.
- A program that lost its seat and is known to be back soon joins the line ahead of time, and is warmed in its new seat.
- When the seated outgrow the ceiling: idle seats that fail that test go first, then idle ones of worse rank, then
  the arriving step is held. Running steps are never aborted. One program too large for an engine may have it alone.
- An LRU evicts an idle seat before the newer blocks of a program that is over, so seats at risk are touched.

Loses: when gaps are long and unpredictable and memory is plentiful, it ties with affinity; when one step's prompt
alone exceeds an engine's KV it can do nothing.
"""

from __future__ import annotations

from agentserve.core.fairness import Accounts
from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId, TenantId
from agentserve.core.policies.anew import Anew
from agentserve.core.policies.guests import Guests
from agentserve.core.policies.joining import Joining
from agentserve.core.policies.keeper import Keeper
from agentserve.core.policies.order import Order
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.passing import Passing
from agentserve.core.policies.policy import Policy
from agentserve.core.policies.reranking import Reranking
from agentserve.core.policies.returns import Returns
from agentserve.core.policies.rooms import Rooms
from agentserve.core.policies.seats import Book, Seat, Seats
from agentserve.core.policies.thresholds import Thresholds
from agentserve.core.policies.waiting import SMALL, Line, Queued, Room
from agentserve.core.program import WAITING, Program, Step
from agentserve.errors import InvariantBroken

SWEPT_MAX = 2  # engines whose pins are priced in one event; the others' turn comes at once, but after it


class WorkingSet(Policy):
    """Admission by working set; pins with a price; fair between tenants."""

    name = "agentserve"
    Params = WorkingSetParams
    params: WorkingSetParams

    def setup(self) -> None:
        self._books: dict[EngineId, Book] = {}
        self._deadline: float | None = None
        self._anew = Anew()
        self._thresholds = Thresholds(self.params, self._anew)
        self._order = Order(self.board, self.params, self._anew)
        self._rooms = Rooms(self.board, self._books, self._thresholds, self.params)
        self.accounts = Accounts(lambda t: self.board.share(t).weight)
        self._seats = Seats(self.accounts)
        self._keeper = Keeper(self.board, self.params)
        self._line = Line(self.accounts)
        returns = Returns(self.board, self.params)
        self._joining = Joining(self._line, self._order, self._anew, self._rooms, returns, self._arm)
        self._reranking = Reranking(self._line, self._order, self._anew, self._joining.role)
        self._passing = Passing(self._books, self._line, self._order, self._rooms)
        self._guests = Guests(self.board, self.params, self._books)
        self._counts = dict.fromkeys(
            ("seats", "kept", "returned", "released", "outranked", "held", "touches", "unseated"),
            0.0,
        )

    # -- hooks

    def arrived(self, step: Step, now: float) -> None:
        program = step.program
        self._thresholds.arrived(program)
        seat: Seat | None = program.own if isinstance(program.own, Seat) else None
        if seat is not None and seat.book.engine.usable(step.model):
            self._gap_ends(program, seat, now)
            self._seats.rebase(program, seat, now)
            self._go_or_hold(step, seat, now)
            return
        if self._is_guest(step, program):
            self._guests.come(step, now)
            self._arm(now + self.params.sweep_s)
            return
        if seat is not None:
            kept = seat.kept_since is not None  # else it was not away: an engine failed under its step
            self._gap_ends(program, seat, now)
            self._unseat(program, now)
            if kept:
                self.board.unpin(program, seat.book.engine, "moved")
        queued = self._joining.step(step, now)
        # who stands behind others that found no room changes nothing for these
        if self._line.is_first(queued) or self._guests:
            self._fill(now)
        if step.state is WAITING:
            reason = "no_seat" if self.board.fleet.usable(step.model) else "no_engine"
            self.board.wait(step, reason, detail=f"{len(self._line)} programs wait for a seat")

    def _is_guest(self, step: Step, program: Program) -> bool:
        """Is it beside what its program has a seat for, or waits for?"""
        if isinstance(program.own, Seat):
            return step.relation == "auxiliary" or len(program.open_steps) > 1
        queued: Queued | None = program.own
        return queued is not None and bool(queued.steps) and queued.engines != self._rooms.serving(step.model)

    def closed(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        program = step.program
        if finished:
            self._thresholds.finished(program)
        seat = program.own
        book = self._books.get(engine.id) if engine is not None else None
        if book is not None and book.measured != book.engine.kv_tokens:
            book.measure()
        if self._guests.leave(step, engine):
            if isinstance(seat, Seat) and program.idle and not program.ended and seat.kept_since is None:
                self._seats.charge(program, seat, now)
                self._gap_begins(program, seat, now)
            elif isinstance(seat, Seat):
                self._keeper.used(program, seat.book)
        elif isinstance(seat, Seat):
            seat.book.ran_at = now
            seat.book.given_up = 0
            if step in seat.book.held:
                seat.book.held.remove(step)
            self._keeper.won(program, seat, step)
            self._seats.charge(program, seat, now)
            if program.idle and not program.ended:
                self._gap_begins(program, seat, now)
        elif isinstance(seat, Queued):
            seat.steps = [s for s in seat.steps if s is not step]
            if not seat.steps:
                self._line.leave(program)
        if program.idle and program.ended:
            return  # `ended` comes next: its seat goes first, and no pin is made for it
        self._fill(now)

    def ended(self, program: Program, now: float) -> None:
        if isinstance(program.own, Seat):
            engine = program.own.book.engine
            self._unseat(program, now)
            if engine.pin_mode == "native":
                self.board.unpin(program, engine, "ended")
        elif isinstance(program.own, Queued):
            self._line.leave(program)
        self._fill(now)

    def reshared(self, tenant: TenantId, now: float) -> None:
        self.accounts.reweigh(tenant, now)

    def engine_changed(self, engine: Engine, now: float) -> None:
        self._rooms.engines_changed()
        book = self._books.get(engine.id)
        if book is None:
            book = self._books[engine.id] = Book(engine, self.params)
        book.measure()
        if not engine.up or engine.draining:
            for step in list(book.held):
                book.held.remove(step)
            for program in list(book.seated.values()):
                waiting = [s for s in self._waiting(program) if s not in self._guests]
                if engine.up and program.idle:
                    self._let_go(program, book, now, "drained")
                elif not engine.up or waiting:
                    self._unseat(program, now)
                    for step in waiting:
                        self._joining.step(step, now)
        self._fill(now)

    def hinted(self, program: Program, now: float) -> None:
        if program.idle and isinstance(program.own, Seat):
            # more is known of the gap: the pin's end is found anew when it is asked for
            program.own.until = None
        elif program.idle and program.own is None:
            self._joining.ahead(program, now)
        self._fill(now)

    def tick(self, now: float) -> None:
        self._deadline = None
        self._joining.those_due(now)
        for book in self._books.values():
            touched, later = self._keeper.touch(book, now)
            self._counts["touches"] += touched
            if later:
                self._arm(now + self.params.touch_s)
        self._reranking.look(now)
        self._line.look_again()
        self._fill(now)
        if self._line:  # engines are looked through in turn, so that some may be due before long
            due = [at for b in self._books.values() if (at := b.swept_at + self.params.sweep_s) > now]
            self._arm(min(due, default=now + self.params.sweep_s))

    def deadline(self) -> float | None:
        return self._deadline

    # -- queueing

    def _waiting(self, program: Program) -> list[Step]:
        return [s for s in program.open_steps.values() if s.state is WAITING]

    # -- seating

    def _fill(self, now: float) -> None:
        """Hand out what room there is: to held steps first, then to the queue."""
        for book in self._books.values():
            if book.held:
                self._release_held(book, now)
        if self._guests:
            self._guests.place(now)
            self._arm(now + self.params.sweep_s)
        full: tuple[Room, ...] = ()
        while self._line and (queued := self._line.next(now, full)) is not None:
            found = self._passing.find(queued, now) if self._anew.keeps_nothing(queued.program) else None
            if found is not None:
                self._seat(*found, now, aside=False)
                continue
            # a small one that passes a large one by takes nothing of what that waits for
            passes = queued.role == SMALL and (queued.engines, False) in full
            room = None if passes else self._find_room(queued, now)
            aside = room is None and queued.role == SMALL
            if aside:
                room = self._rooms.aside(queued.program, self._model(queued))
            if room is not None:
                self._seat(queued, room, now, aside=aside)
                continue
            self._arm(now + self.params.sweep_s)
            if self._line.rooms <= 1:
                break
            full = (*full, queued.room)
        self._line.note_gap()

    def _find_room(self, queued: Queued, now: float) -> Book | None:
        """The engine to seat it on: home while its KV is there, else where most is free; idle seats may have to go."""
        program = queued.program
        found = self._rooms.look(program, self._model(queued), now)
        if found.roomy:
            return self._rooms.best(program, found.roomy)
        for book in found.full[:SWEPT_MAX]:
            if self._sweep(book, program, now):
                return book
        if len(found.full) > SWEPT_MAX:
            self._arm(now)
        return None

    def _model(self, queued: Queued) -> str:
        """That its next step is for."""
        return queued.steps[0].model if queued.steps else queued.program.model

    def _seat(self, queued: Queued, book: Book, now: float, *, aside: bool) -> None:
        program = queued.program
        self._line.leave(program)
        seat = self._seats.give(program, book, queued.key, now, aside=aside)
        self._counts["seats"] += 1
        if not queued.steps:
            self._keeper.restore(program, seat, now)
        for step in queued.steps:
            self.board.dispatch(
                step,
                book.engine,
                now,
                "seated",
                priority=self._priority(seat),
                detail=f"{book.load} of {int(book.capacity)} tokens seated",
            )

    def _unseat(self, program: Program, now: float) -> None:
        seat: Seat = program.own
        self._keeper.end(program, seat)
        self._keeper.lost(program, seat, now)
        self._seats.take(program, seat, now)

    # -- the seated

    def _go_or_hold(self, step: Step, seat: Seat, now: float) -> None:
        book = seat.book
        over = book.load - self._thresholds.ceiling * book.capacity
        if over > 0 and len(book.seated) > 1:
            self._make_room(book, step.program, over, now)
            over = book.load - self._thresholds.ceiling * book.capacity
        if over <= 0 or len(book.seated) == 1 or not book.engine.steps:
            self.board.dispatch(step, book.engine, now, "kept", priority=self._priority(seat))
            return
        self._counts["held"] += 1
        book.held.append(step)
        self.board.wait(step, "held", detail=f"{int(over)} tokens over the ceiling")

    def _release_held(self, book: Book, now: float) -> None:
        """Held steps in order of rank, while the seats fit; if nothing runs, the worst holders lose their seats."""
        ceiling = self._thresholds.ceiling * book.capacity
        if book.load > ceiling and not book.engine.steps:
            first = min(book.held, key=self._order.step_rank).program
            for step in sorted(book.held, key=self._order.step_rank, reverse=True):
                if book.load <= ceiling:
                    break
                if step.program is not first and step in book.held:
                    self._unseat_held(step.program, book, now)
        while book.held and (book.load <= ceiling or not book.engine.steps):
            step = min(book.held, key=self._order.step_rank)
            book.held.remove(step)
            seat: Seat = step.program.own
            self.board.dispatch(step, book.engine, now, "kept", priority=self._priority(seat))

    def _unseat_held(self, program: Program, book: Book, now: float) -> None:
        """It loses its seat while steps of it are held: all of them, forks too, go back to the line."""
        held = [step for step in book.held if step.program is program]
        book.held = [step for step in book.held if step.program is not program]
        self._unseat(program, now)
        self._counts["unseated"] += 1
        for step in held:
            self._joining.step(step, now)

    def _make_room(self, book: Book, program: Program, over: float, now: float) -> None:
        """The seated outgrew the ceiling: idle seats not worth their price go, then idle ones of worse rank."""
        self._sweep(book, None, now)
        over = book.load - self._thresholds.ceiling * book.capacity
        if over <= 0:
            return
        mine = self._order.seat_key(program)
        ranked = [(self._order.seat_key(p), p.id, p) for p in book.seated.values() if p.idle]
        for key, _, other in sorted(ranked, reverse=True):
            if key <= mine:
                break
            if book.load <= self._thresholds.ceiling * book.capacity:
                break
            self._let_go(other, book, now, "outranked")

    # -- gaps

    def _gap_begins(self, program: Program, seat: Seat, now: float) -> None:
        self._counts["kept"] += 1
        seat.stale = True
        if not self.params.reserve_gaps:
            self._let_go(program, seat.book, now, "no_reserve")
            return
        if self._anew.keeps_nothing(program):
            # a seat while a step of it runs, and no longer, though nobody wait: the next step is as well off elsewhere,
            # and where ends are not told the programs that are over would fill the engines; among programs that do find
            # what they left, it keeps its small seat rather than stand behind them before each step
            self._let_go(program, seat.book, now, "nothing_kept")
            return
        self._keeper.begin(program, seat, now)
        # Where others' traffic could evict what we would leave, the engine must be told now. Elsewhere a pin is priced
        # when its engine is looked through for who waits: many gaps are over before that.
        native = seat.book.engine.pin_mode == "native"
        if native and not self._keeper.keeps(program, seat, now) and self._line:
            self._let_go(program, seat.book, now, "not_worth")
        elif self.params.touch_s:
            self._arm(now + self.params.touch_s)

    def _gap_ends(self, program: Program, seat: Seat, now: float) -> None:
        if seat.kept_since is not None:
            self._counts["returned"] += 1
            self._order.gap_ended(now - seat.kept_since)
            self._keeper.end(program, seat)

    def _sweep(self, book: Book, wanting: Program | None, now: float) -> bool:
        """Let go of the idle seats whose price is above their worth; whether `wanting` fits then."""
        book.swept_at = now
        for program in [p for p in book.seated.values() if not p.open_steps]:
            if not self._keeper.keeps(program, program.own, now):
                self._let_go(program, book, now, "not_worth")
        if wanting is None:
            return False
        if self._keeper.stalled(book, now):
            self._give_up(book, wanting, now)
        return self._rooms.fits(wanting, book)

    def _give_up(self, book: Book, wanting: Program, now: float) -> None:
        """One pin more that would have been kept, then as many again each time that the engine still stands still."""
        for _ in range(max(book.given_up, 1)):
            first = self._keeper.first_to_end(book, now)
            if first is None or self._rooms.fits(wanting, book):
                return
            self._let_go(first, book, now, "stalled")
            book.given_up += 1

    def _let_go(self, program: Program, book: Book, now: float, reason: str) -> None:
        self._counts["outranked" if reason == "outranked" else "released"] += 1
        self._unseat(program, now)
        self.board.unpin(program, book.engine, reason)
        self._joining.ahead(program, now)

    def _priority(self, seat: Seat) -> int:
        """The engine's own queue gets the same order: seconds of rank."""
        return int(seat.key) if seat.key > 0.0 else 0

    def _arm(self, when: float) -> None:
        if self._deadline is None or when < self._deadline:
            self._deadline = when

    # -- for others

    def check(self) -> None:
        self.accounts.check()
        self._rooms.check()
        for book in self._books.values():
            book.check()
            if book.seated and not book.engine.up:
                raise InvariantBroken(f"{book.engine.id} is lost, and programs have seats there")
        for program in self.board.programs.values():
            waiting = [s for s in self._waiting(program) if s not in self._guests]
            if waiting and program.own is None:
                raise InvariantBroken(f"program {program.id} waits for nothing")

    @property
    def counts(self) -> dict[str, float]:
        """What was done with seats since the start, by what it was."""
        return {**self._counts, "expected": self._joining.expected}

    @property
    def queued(self) -> int:
        """Programs that wait for a seat."""
        return len(self._line)

    def seats(self) -> dict[EngineId, tuple[int, int]]:
        """Of each engine, how many programs are seated and how many tokens their seats hold."""
        return {engine: (len(book.seated), book.load) for engine, book in self._books.items()}

    def figures(self) -> dict[str, float]:
        return {**self.counts, **self._keeper.accounts.figures(), "fairness_gap": self.accounts.gap_max}
