"""Seats: what each engine keeps for which program, and what that is charged to its tenant.

Rule: a seat's charge is on its book from the moment it is given until it is taken. Who is seated where, in what order,
and what becomes of a seat in a gap is not decided here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from agentserve.core.events import Segment
from agentserve.core.fairness import Accounts
from agentserve.core.fleet import KV_TOKENS_ASSUMED, Engine
from agentserve.core.ids import ProgramId, StepId, TenantId
from agentserve.core.pins import Bet
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.program import WAITING, Program, Step
from agentserve.errors import InvariantBroken


@dataclass(slots=True, eq=False)
class Seat:
    """A program's place on an engine."""

    book: Book
    path: tuple[Segment, ...]
    shared_tokens: int = 0  # of the path
    tokens: int = 0  # charged beyond the shared path
    aside: bool = False  # of the room for small ones, while it is small
    key: float = 0.0
    stale: bool = False  # the program went on since its key was made; made anew when a rank is asked for
    kept_since: float | None = None  # in a gap since then
    idle_tokens: int = 0  # of its tenant's pins, while it is in a gap
    until: float | None = None  # the pin's end, once someone wanted the memory
    bet: Bet | None = None  # open, or to be settled by what the engine says of its cache


@dataclass(slots=True, eq=False)
class Book:
    """One engine's seats."""

    engine: Engine
    params: WorkingSetParams
    seated: dict[ProgramId, Program] = field(default_factory=dict)
    load: int = 0  # tokens of all seats, shared paths once, and of guests
    aside: int = 0  # of these, those of small ones that passed large ones by
    held: list[Step] = field(default_factory=list)
    guests: dict[StepId, int] = field(default_factory=dict)  # their tokens, charged while they are there
    idle: Counter[TenantId] = field(default_factory=Counter)  # tokens of seats in gaps
    swept_at: float = -1e18
    ran_at: float = -1e18  # when a step of ours was last there
    given_up: int = 0  # pins, since then, because the engine stood still
    oldest: int = 0  # reading of the engine's clock, before which no idle seat's KV was last used
    # for fresh seats, from when it is looked up until the load is another (`rooms`)
    room: float | None = None
    capacity: float = field(init=False)  # what the engine is believed to hold
    margin: int = field(init=False)  # what a program may grow by beyond what is known of it
    small_max: float = field(init=False)  # tokens of a small seat
    measured: int = field(init=False)  # the engine's KV when these were found

    def __post_init__(self) -> None:
        self.measure()

    def measure(self) -> None:
        """The engine's KV may be another than it was: it reported, or a step showed what it holds."""
        params, tokens = self.params, self.engine.kv_tokens
        self.measured = tokens
        known = tokens < KV_TOKENS_ASSUMED
        self.capacity = tokens * (1.0 - params.capacity_margin) if known else float(KV_TOKENS_ASSUMED)
        self.margin = min(params.margin_tokens, int(params.margin_share_max * self.capacity))
        self.small_max = params.small * self.capacity
        self.room = None

    def add(self, tokens: int, *, aside: int = 0) -> None:
        """So many more are charged to the engine, or fewer; so many of them aside."""
        self.load += tokens
        self.aside += aside
        self.room = None

    def check(self) -> None:
        """What stands on the book is what its seats add up to."""
        if self.measured != self.engine.kv_tokens:
            raise InvariantBroken(f"{self.engine.id}: it holds {self.engine.kv_tokens}, not {self.measured}")
        charged = sum(p.own.tokens for p in self.seated.values()) + self.engine.prefixes.tokens()
        charged += sum(self.guests.values())
        if sum(p.own.tokens for p in self.seated.values() if p.own.aside) != self.aside:
            raise InvariantBroken(f"{self.engine.id}: its seats aside do not add up to {self.aside}")
        if charged != self.load:
            raise InvariantBroken(f"{self.engine.id}: seats add up to {charged}, the book says {self.load}")
        if sum(p.own.idle_tokens for p in self.seated.values()) != sum(self.idle.values()):
            raise InvariantBroken(f"{self.engine.id}: tenants' pins do not add up to the idle seats")
        if any(p.idle and p.home_clock < self.oldest for p in self.seated.values()):
            raise InvariantBroken(f"{self.engine.id}: KV of an idle seat is older than {self.oldest}")
        for step in self.held:
            if step.state is not WAITING or not isinstance(step.program.own, Seat):
                raise InvariantBroken(f"step {step.id} is held but not waiting")
        if self.held and not self.engine.steps:
            raise InvariantBroken(f"{self.engine.id} holds steps and runs none")


class Seats:
    """Gives and takes them; the charge stands on the engine's book and on the tenant's account."""

    __slots__ = ("_accounts",)

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def give(self, program: Program, book: Book, key: float, now: float, *, aside: bool = False) -> Seat:
        """The program has its place on this engine."""
        seat = program.own = Seat(book, program.prefix, program.shared_tokens, key=key, aside=aside)
        book.seated[program.id] = program
        book.add(book.engine.prefixes.take(seat.path))
        self.charge(program, seat, now)
        return seat

    def take(self, program: Program, seat: Seat, now: float) -> None:
        """It has none any more."""
        program.own = None
        del seat.book.seated[program.id]
        given_back = seat.tokens + seat.book.engine.prefixes.drop(seat.path)
        seat.book.add(-given_back, aside=-seat.tokens if seat.aside else 0)
        self._accounts.hold(program.tenant, -seat.tokens, now)

    def charge(self, program: Program, seat: Seat, now: float) -> None:
        """Bring the seat's charge up to what the program needs now."""
        tokens = program.footprint(seat.book.margin) - seat.shared_tokens
        if tokens < 0:
            tokens = 0
        if tokens != seat.tokens:
            book, more, aside = seat.book, tokens - seat.tokens, 0
            if seat.aside:
                seat.aside = tokens <= book.small_max
                aside = more if seat.aside else -seat.tokens
            book.add(more, aside=aside)
            self._accounts.hold(program.tenant, more, now)
            seat.tokens = tokens

    def rebase(self, program: Program, seat: Seat, now: float) -> None:
        """The program's shared path may be another one now (a chain's next role)."""
        if seat.path != program.prefix:
            prefixes = seat.book.engine.prefixes
            fresh = prefixes.take(program.prefix)
            seat.book.add(fresh - prefixes.drop(seat.path))
            seat.path, seat.shared_tokens = program.prefix, program.shared_tokens
        self.charge(program, seat, now)
