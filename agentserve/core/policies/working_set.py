"""Ours: programs, not steps, are admitted, each with a seat for its whole working set on one engine.

Intent: end the thrash. The contexts of all seated programs, those in tool gaps included, fit the engine's KV, so
a step that returns finds its prefix. Programs without a seat wait here, in an order of their own: fair between
tenants, then by start and by how much is left of them.

Reads: prompt and output tokens, shared prefixes, gap survival, steps left, tenants' weights, engine capacity.

How it decides
- A fresh seat is given up to `admit` of an engine's KV, early starts and small needs first; the seated may grow to
  `ceiling`. The cliff beyond is one-sided (a little too much doubles completion times, a little too few costs
  little), so nothing adaptive ever passes the ceiling.
- A seat in a gap is kept while the program's best rate of return times its prefill saved exceeds the price of the
  memory. The price is zero while nobody waits; else it is what the waiting would do with it: `mu` x the rate at which
  the engine could fill its KV anew.
- When the seated outgrow the ceiling: idle seats that fail that test go first, then idle ones of worse rank, then
  the arriving step is held. Running steps are never aborted. One program too large for an engine may have it alone.
- An LRU evicts an idle seat before the newer blocks of a program that is over, so seats at risk are touched.

Loses: when gaps are long and unpredictable and memory is plentiful, it ties with affinity; when one step's prompt
alone exceeds an engine's KV it can do nothing.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from agentserve.core.board import CLASS_RANK
from agentserve.core.events import Segment
from agentserve.core.fairness import Accounts
from agentserve.core.fleet import KV_TOKENS_ASSUMED, Engine
from agentserve.core.foresight import return_rate
from agentserve.core.ids import EngineId, ProgramId, TenantId
from agentserve.core.policies.policy import Policy
from agentserve.core.program import Program, Step, StepState
from agentserve.errors import InvariantBroken

HORIZONS_S = (0.05, 0.15, 0.4, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSetParams:
    """The constants; what each was tuned on stands in the README."""

    admit: float = 0.9  # of capacity, for fresh seats
    ceiling: float = 1.0  # of capacity, for growth
    capacity_margin: float = 0.03  # capacity is believed to be this much less than reported
    margin_tokens: int = 600  # a step's growth beyond forecast
    beta: float = 1.0  # seconds of rank per forecast second left; 0, with gamma 0, is program-FCFS
    gamma: float = (
        50.0  # seconds of rank per thousand tokens of a seat: small ones first fill the memory better
    )
    mu: float = 0.5  # price of memory, as a share of the engine's own fill rate
    sweep_s: float = 0.5
    touch_s: float = 2.0  # 0: never
    touch_from: float = 0.8  # of capacity seated
    touch_risk: float = 0.5  # of the unseated KV written since the last touch
    reserve_gaps: bool = True  # False: a seat ends with each step (an ablation)
    ttl_s: float | None = None  # a constant instead of the price (an ablation)
    announced_s: float = 5.0  # an announced return is believed for this long
    class_step_s: float = 600.0  # rank between priority classes


@dataclass(slots=True, eq=False)
class Seat:
    """A program's place on an engine."""

    book: Book
    path: tuple[Segment, ...]
    tokens: int = 0  # charged beyond the shared path
    key: float = 0.0
    stale: bool = False  # the program went on since its key was made; made anew when a rank is asked for
    kept_since: float | None = None


@dataclass(slots=True, eq=False)
class Book:
    """One engine's seats."""

    engine: Engine
    seated: dict[ProgramId, Program] = field(default_factory=dict)
    load: int = 0  # tokens of all seats, shared paths once
    held: list[Step] = field(default_factory=list)
    swept_at: float = -1e18
    touched_at: float = -1e18


@dataclass(slots=True, eq=False)
class Queued:
    """A program without a seat, and its waiting steps."""

    program: Program
    key: float
    steps: list[Step] = field(default_factory=list)


class WorkingSet(Policy):
    """Admission by working set; pins with a price; fair between tenants."""

    name = "agentserve"
    Params = WorkingSetParams
    params: WorkingSetParams

    def setup(self) -> None:
        self._books: dict[EngineId, Book] = {}
        self._queued: dict[ProgramId, Queued] = {}
        self._heaps: dict[TenantId, list[tuple[float, ProgramId]]] = {}
        self._deadline: float | None = None
        self._step_s = 8.0  # mean seconds from one step of a program to its next
        self.accounts = Accounts(lambda t: self.board.share(t).weight)
        self._counts = dict.fromkeys(
            ("seats", "kept", "returned", "released", "outranked", "held", "touches", "unseated"), 0.0
        )

    # -- hooks

    def arrived(self, step: Step, now: float) -> None:
        program = step.program
        seat: Seat | None = program.own if isinstance(program.own, Seat) else None
        if seat is not None:
            if seat.kept_since is not None:
                self._counts["returned"] += 1
                gap = now - seat.kept_since
                self._step_s += 0.01 * (gap + 4.0 - self._step_s)
                seat.kept_since = None
            self._rebase(program, seat, now)
            self._go_or_hold(step, seat, now)
            return
        self._enqueue(step, now)
        self._fill(now)
        if step.state is StepState.WAITING:
            detail = f"{len(self._queued)} programs wait for a seat"
            self.board.wait(step, "no_seat", detail=detail)

    def closed(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        program = step.program
        seat = program.own
        if isinstance(seat, Seat):
            if step in seat.book.held:
                seat.book.held.remove(step)
            self._charge(program, seat, now)
            if program.idle and not program.ended:
                self._gap_begins(program, seat, now)
        elif isinstance(seat, Queued):
            seat.steps = [s for s in seat.steps if s is not step]
            if not seat.steps:
                self._dequeue(program)
        self._fill(now)

    def ended(self, program: Program, now: float) -> None:
        if isinstance(program.own, Seat):
            self._unseat(program, now)
        elif isinstance(program.own, Queued):
            self._dequeue(program)
        self._fill(now)

    def engine_changed(self, engine: Engine, now: float) -> None:
        book = self._books.get(engine.id)
        if book is None:
            book = self._books[engine.id] = Book(engine)
        if not engine.up or engine.draining:
            for step in list(book.held):
                book.held.remove(step)
            for program in list(book.seated.values()):
                waiting = [s for s in program.open_steps.values() if s.state is StepState.WAITING]
                if not engine.up or program.idle or waiting:
                    self._unseat(program, now)
                    for step in waiting:
                        self._enqueue(step, now)
        self._fill(now)

    def hinted(self, program: Program, now: float) -> None:
        self._fill(now)

    def tick(self, now: float) -> None:
        self._deadline = None
        for book in self._books.values():
            self._touch_idle(book, now)
        self._fill(now)

    def deadline(self) -> float | None:
        return self._deadline

    # -- queueing

    def _key(self, program: Program) -> float:
        """Smaller goes first. Static, so that a heap holds it: start, plus how much is left, by class and deadline."""
        left_s = self.board.foresight.steps_left(program) * self._step_s
        key = program.created_at + self.params.beta * left_s
        key += self.params.gamma * max(program.context_tokens - program.shared_tokens, 0) / 1000
        key += self.params.class_step_s * (CLASS_RANK[program.priority] - 1)
        if program.deadline_at is not None:
            key = min(key, program.deadline_at - left_s)
        return key

    def _enqueue(self, step: Step, now: float) -> None:
        program = step.program
        queued = program.own
        if not isinstance(queued, Queued):
            queued = Queued(program, self._key(program))
            program.own = queued
            heap = self._heaps.get(program.tenant)
            if not heap:
                heap = self._heaps[program.tenant] = []
                self.accounts.rejoin(program.tenant, list(self._heaps), now)
            self._queued[program.id] = queued
            heapq.heappush(heap, (queued.key, program.id))
        queued.steps.append(step)

    def _dequeue(self, program: Program) -> Queued:
        """Out of the queue; its heap entry is skipped when it comes up."""
        program.own = None
        return self._queued.pop(program.id)

    def _next(self, now: float) -> Queued | None:
        """Who goes next: the tenant with the least service, then the smallest key."""
        for tenant in [t for t, heap in self._heaps.items() if not self._settle(heap)]:
            del self._heaps[tenant]
        if not self._heaps:
            return None
        tenant = next(iter(self._heaps)) if len(self._heaps) == 1 else self.accounts.least(self._heaps, now)
        return self._queued[self._heaps[tenant][0][1]]

    def _settle(self, heap: list[tuple[float, ProgramId]]) -> bool:
        """Drop entries of programs that no longer wait; whether one is left."""
        while heap:
            key, program_id = heap[0]
            queued = self._queued.get(program_id)
            if queued is not None and queued.key == key:
                return True
            heapq.heappop(heap)
        return False

    # -- seating

    def _capacity(self, engine: Engine) -> float:
        if engine.kv_tokens >= KV_TOKENS_ASSUMED:
            return float(KV_TOKENS_ASSUMED)
        return engine.kv_tokens * (1.0 - self.params.capacity_margin)

    def _fill(self, now: float) -> None:
        """Hand out what room there is: to held steps first, then to the queue."""
        for book in self._books.values():
            if book.held:
                self._release_held(book, now)
        while (queued := self._next(now)) is not None:
            room = self._find_room(queued.program, now)
            if room is None:
                self._arm(now + self.params.sweep_s)
                break
            self._seat(queued, room, now)
        if len(self._heaps) > 1:
            self.accounts.note_gap(self._heaps, now)

    def _need(self, program: Program, book: Book) -> int:
        shared = program.shared_tokens
        own = max(program.footprint(self.params.margin_tokens) - shared, 0)
        return own + book.engine.prefixes.missing(program.prefix)

    def _find_room(self, program: Program, now: float) -> Book | None:
        """The engine to seat it on: home while its KV is there, else where most is free; idle seats may have to go."""
        steps = program.open_steps.values()
        model = next(iter(steps)).model if steps else ""
        books = [b for e in self.board.fleet.usable(model) if (b := self._books.get(e.id)) is not None]
        if not books:
            return None
        roomy = [b for b in books if self._fits(program, b)]
        if not roomy:
            for book in sorted(books, key=lambda b: b.load / self._capacity(b.engine)):
                if now - book.swept_at >= self.params.sweep_s and self._sweep(book, program, now):
                    roomy = [book]
                    break
        if not roomy:
            return None
        home = next((b for b in roomy if b.engine.id == program.home), None)
        if (
            home is not None
            and self.board.fleet.expected_cached(program, home.engine) > program.shared_tokens
        ):
            return home
        return min(roomy, key=lambda b: self._placement(program, b))

    def _placement(self, program: Program, book: Book) -> tuple[float, float, str]:
        engine = book.engine
        filled = (book.load + self._need(program, book)) / self._capacity(engine)
        if engine.kv_tokens >= KV_TOKENS_ASSUMED or filled < 0.5:
            return (len(book.seated) / engine.speed, filled, engine.id)
        return (1e6 + filled / engine.speed, 0.0, engine.id)

    def _fits(self, program: Program, book: Book) -> bool:
        if not book.seated:
            return True
        capacity = self._capacity(book.engine)
        if book.held or len(book.engine.steps) >= (book.engine.seqs_max or 1 << 30):
            return False
        return book.load + self._need(program, book) <= self.params.admit * capacity

    def _seat(self, queued: Queued, book: Book, now: float) -> None:
        program = queued.program
        self._dequeue(program)
        seat = Seat(book, program.prefix, key=queued.key)
        program.own = seat
        book.seated[program.id] = program
        book.load += book.engine.prefixes.take(seat.path)
        self._charge(program, seat, now)
        self._counts["seats"] += 1
        for step in queued.steps:
            self.board.dispatch(
                step,
                book.engine,
                now,
                "seated",
                priority=self._priority(seat),
                detail=f"{book.load} of {int(self._capacity(book.engine))} tokens seated",
            )

    def _unseat(self, program: Program, now: float) -> None:
        seat: Seat = program.own
        book = seat.book
        program.own = None
        del book.seated[program.id]
        book.load -= seat.tokens + book.engine.prefixes.drop(seat.path)
        self.accounts.hold(program.tenant, -seat.tokens, now)

    def _charge(self, program: Program, seat: Seat, now: float) -> None:
        """Bring the seat's charge up to what the program needs now."""
        shared = sum(s.tokens for s in seat.path)
        tokens = max(program.footprint(self.params.margin_tokens) - shared, 0)
        if tokens != seat.tokens:
            seat.book.load += tokens - seat.tokens
            self.accounts.hold(program.tenant, tokens - seat.tokens, now)
            seat.tokens = tokens

    def _rebase(self, program: Program, seat: Seat, now: float) -> None:
        """The program's shared path may be another one now (a chain's next role)."""
        if seat.path != program.prefix:
            prefixes = seat.book.engine.prefixes
            fresh = prefixes.take(program.prefix)
            seat.book.load += fresh - prefixes.drop(seat.path)
            seat.path = program.prefix
        self._charge(program, seat, now)

    # -- the seated

    def _go_or_hold(self, step: Step, seat: Seat, now: float) -> None:
        book = seat.book
        over = book.load - self.params.ceiling * self._capacity(book.engine)
        if over > 0 and len(book.seated) > 1:
            self._make_room(book, step.program, over, now)
            over = book.load - self.params.ceiling * self._capacity(book.engine)
        if over <= 0 or len(book.seated) == 1 or not book.engine.steps:
            self.board.dispatch(step, book.engine, now, "kept", priority=self._priority(seat))
            return
        self._counts["held"] += 1
        book.held.append(step)
        self.board.wait(step, "held", detail=f"{int(over)} tokens over the ceiling")

    def _release_held(self, book: Book, now: float) -> None:
        """Held steps in order of rank, while the seats fit; if nothing runs, the worst holders lose their seats."""
        ceiling = self.params.ceiling * self._capacity(book.engine)
        if book.load > ceiling and not book.engine.steps:
            for step in sorted(book.held, key=self._rank, reverse=True)[:-1]:
                if book.load <= ceiling:
                    break
                book.held.remove(step)
                self._unseat(step.program, now)
                self._counts["unseated"] += 1
                self._enqueue(step, now)
        while book.held and (book.load <= ceiling or not book.engine.steps):
            step = min(book.held, key=self._rank)
            book.held.remove(step)
            seat: Seat = step.program.own
            self.board.dispatch(step, book.engine, now, "kept", priority=self._priority(seat))

    def _rank(self, step: Step) -> tuple[float, str]:
        return (self._seat_key(step.program), step.id)

    def _seat_key(self, program: Program) -> float:
        """The seat's rank as it is now; forecasts are asked only when a rank is needed."""
        seat: Seat = program.own
        if seat.stale:
            seat.key = self._key(program)
            seat.stale = False
        return seat.key

    def _make_room(self, book: Book, program: Program, over: float, now: float) -> None:
        """The seated outgrew the ceiling: idle seats not worth their price go, then idle ones of worse rank."""
        self._sweep(book, None, now)
        over = book.load - self.params.ceiling * self._capacity(book.engine)
        if over <= 0:
            return
        mine = self._seat_key(program)
        ranked = [(self._seat_key(p), p.id, p) for p in book.seated.values() if p.idle]
        for key, _, other in sorted(ranked, reverse=True):
            if key <= mine:
                break
            if book.load <= self.params.ceiling * self._capacity(book.engine):
                break
            self._let_go(other, book, now, "outranked")

    def _gap_begins(self, program: Program, seat: Seat, now: float) -> None:
        seat.kept_since = now
        self._counts["kept"] += 1
        seat.stale = True
        if not self.params.reserve_gaps:
            self._let_go(program, seat.book, now, "no_reserve")
            return
        if self._heaps and not self._worth(program, seat.book, now):
            self._let_go(program, seat.book, now, "not_worth")
            return
        if self.params.touch_s:
            self._arm(now + self.params.touch_s)

    def _sweep(self, book: Book, wanting: Program | None, now: float) -> bool:
        """Let go of the idle seats whose price is above their worth; whether `wanting` fits then."""
        book.swept_at = now
        for program in [p for p in book.seated.values() if p.idle]:
            if not self._worth(program, book, now):
                self._let_go(program, book, now, "not_worth")
        return wanting is not None and self._fits(wanting, book)

    def _worth(self, program: Program, book: Book, now: float) -> bool:
        """Whether an idle program's KV is worth its memory while others wait."""
        seat: Seat = program.own
        elapsed = now - (seat.kept_since if seat.kept_since is not None else now)
        if program.returns_at is not None and abs(program.returns_at - now) < self.params.announced_s:
            return True
        if self.params.ttl_s is not None:
            return elapsed <= self.params.ttl_s
        if program.survival is None:
            return True
        fill_s = self._capacity(book.engine) / (book.engine.prefill_tokens_per_s * book.engine.speed)
        return return_rate(program.survival, elapsed, HORIZONS_S) * fill_s >= self.params.mu

    def _let_go(self, program: Program, book: Book, now: float, reason: str) -> None:
        self._counts["released" if reason == "not_worth" else "outranked"] += 1
        self._unseat(program, now)
        self.board.unpin(program, book.engine, reason)

    def _touch_idle(self, book: Book, now: float) -> None:
        """Refresh idle seats that an LRU would evict before newer blocks of programs that are over."""
        engine = book.engine
        capacity = self._capacity(engine)
        if not self.params.touch_s or not engine.up or book.load < self.params.touch_from * capacity:
            return
        spare = max(engine.kv_tokens - book.load, 0)
        idle = False
        for program in book.seated.values():
            if not program.idle:
                continue
            idle = True
            if engine.written - program.home_clock > self.params.touch_risk * spare:
                self._counts["touches"] += 1
                self.board.warm(
                    program, engine, tokens=program.context_tokens, due=now, reason="touch", refresh=True
                )
        if idle:
            self._arm(now + self.params.touch_s)

    def _priority(self, seat: Seat) -> int:
        """The engine's own queue gets the same order: seconds of rank."""
        return max(0, int(seat.key))

    def _arm(self, when: float) -> None:
        if self._deadline is None or when < self._deadline:
            self._deadline = when

    # -- for others

    def check(self) -> None:
        self.accounts.check()
        for book in self._books.values():
            charged = sum(p.own.tokens for p in book.seated.values()) + book.engine.prefixes.tokens()
            if charged != book.load:
                raise InvariantBroken(
                    f"{book.engine.id}: seats add up to {charged}, the book says {book.load}"
                )
            for step in book.held:
                if step.state is not StepState.WAITING or not isinstance(step.program.own, Seat):
                    raise InvariantBroken(f"step {step.id} is held but not waiting")
            if book.held and not book.engine.steps:
                raise InvariantBroken(f"{book.engine.id} holds steps and runs none")
        for program in self.board.programs.values():
            waiting = [s for s in program.open_steps.values() if s.state is StepState.WAITING]
            if waiting and program.own is None:
                raise InvariantBroken(f"program {program.id} waits for nothing")

    @property
    def counts(self) -> dict[str, float]:
        """What was done with seats since the start, by what it was."""
        return dict(self._counts)

    @property
    def queued(self) -> int:
        """Programs that wait for a seat."""
        return len(self._queued)

    def seats(self) -> dict[EngineId, tuple[int, int]]:
        """Of each engine, how many programs are seated and how many tokens their seats hold."""
        return {engine: (len(book.seated), book.load) for engine, book in self._books.items()}

    def figures(self) -> dict[str, float]:
        return {**self._counts, "fairness_gap": self.accounts.gap_max}
