"""Seats and their pins: what each engine keeps for which program, and what becomes of a seat in a gap.

Rule: a seat's charge is on its book from the moment it is given until it is taken; a seat in a gap is a pin, and a pin
has a price only while others wait. Who is seated where, and in what order, is not decided here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from agentserve.core.board import Board
from agentserve.core.events import Segment
from agentserve.core.fleet import KV_TOKENS_ASSUMED, Engine
from agentserve.core.ids import ProgramId, StepId, TenantId
from agentserve.core.pins import Bet, PinAccounts, gain_forecast_s, ttl_s
from agentserve.core.program import Program, Step
from agentserve.errors import InvariantBroken


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSetParams:
    """The constants; what each was tuned on stands in the README."""

    admit: float = 0.9  # of capacity, for fresh seats
    loose: float = 0.5  # how much more than `admit` where programs do not return: the engine's own queue does
    ceiling: float = 1.0  # of capacity, for growth
    capacity_margin: float = 0.03  # capacity is believed to be this much less than reported
    margin_tokens: int = 600  # a step's growth beyond forecast,
    margin_share_max: float = (
        0.04  # but no more than this share of an engine's KV: small ones hold small prompts
    )
    beta: float = 1.0  # seconds of rank per forecast second left; 0, with gamma 0, is program-FCFS
    gamma: float = (
        50.0  # seconds of rank per thousand tokens of a seat: small ones first fill the memory better
    )
    mu: float = 0.7  # price of memory, as a share of the engine's own fill rate
    sweep_s: float = 0.5
    touch_s: float = 2.0  # 0: never
    touch_from: float = 0.8  # of capacity seated
    touch_risk: float = 0.5  # of the unseated KV written since the last touch
    reserve_gaps: bool = True  # False: a seat ends with each step (an ablation)
    ttl_s: float | None = None  # a constant instead of the price (an ablation)
    pin_s_max: float = 300.0  # no pin outlasts this while others wait, whatever was forecast
    announced_s: float = 5.0  # an announced return is believed for this long after its time
    certain_share: float = (
        0.25  # a return is foretold when 60% of its forecast lie within this share of its median
    )
    lead_s_max: float = (
        2.0  # who is expected joins the line at most this much ahead, however long its prefill
    )
    guest_wait_s_max: float = 10.0  # a step beside its program's seat goes then, whatever else is there
    stall_s: float = 1.0  # an engine that runs nothing for so long while others wait gives up a pin
    class_step_s: float = 600.0  # rank between priority classes


@dataclass(slots=True, eq=False)
class Seat:
    """A program's place on an engine."""

    book: Book
    path: tuple[Segment, ...]
    shared_tokens: int = 0  # of the path
    tokens: int = 0  # charged beyond the shared path
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
    held: list[Step] = field(default_factory=list)
    guests: dict[StepId, int] = field(default_factory=dict)  # their tokens, charged while they are there
    idle: Counter[TenantId] = field(default_factory=Counter)  # tokens of seats in gaps
    swept_at: float = -1e18
    ran_at: float = -1e18  # when a step of ours was last there
    capacity: float = field(init=False)  # what the engine is believed to hold
    margin: int = field(init=False)  # what a program may grow by beyond what is known of it
    measured: int = field(init=False)  # the engine's KV when these two were found

    def __post_init__(self) -> None:
        self.measure()

    def measure(self) -> None:
        """The engine's KV may be another than it was: it reported, or a step showed what it holds."""
        params, tokens = self.params, self.engine.kv_tokens
        self.measured = tokens
        known = tokens < KV_TOKENS_ASSUMED
        self.capacity = tokens * (1.0 - params.capacity_margin) if known else float(KV_TOKENS_ASSUMED)
        self.margin = min(params.margin_tokens, int(params.margin_share_max * self.capacity))

    def check(self) -> None:
        """What stands on the book is what its seats add up to."""
        if self.measured != self.engine.kv_tokens:
            raise InvariantBroken(f"{self.engine.id}: it holds {self.engine.kv_tokens}, not {self.measured}")
        charged = sum(p.own.tokens for p in self.seated.values()) + self.engine.prefixes.tokens()
        charged += sum(self.guests.values())
        if charged != self.load:
            raise InvariantBroken(f"{self.engine.id}: seats add up to {charged}, the book says {self.load}")
        if sum(p.own.idle_tokens for p in self.seated.values()) != sum(self.idle.values()):
            raise InvariantBroken(f"{self.engine.id}: tenants' pins do not add up to the idle seats")


class Keeper:
    """Keeps idle seats while they are worth their memory, and settles what each pin cost and saved."""

    def __init__(self, board: Board, params: WorkingSetParams) -> None:
        self.board = board
        self.params = params
        self.accounts = PinAccounts()

    def begin(self, program: Program, seat: Seat, now: float) -> None:
        """A gap begins."""
        seat.kept_since = now
        seat.until = None
        seat.idle_tokens = seat.tokens
        seat.book.idle[program.tenant] += seat.tokens

    def end(self, program: Program, seat: Seat) -> None:
        """The program is back, or its seat is taken. A bet stays open until it is settled."""
        if seat.kept_since is not None:
            seat.book.idle[program.tenant] -= seat.idle_tokens
            seat.kept_since = seat.until = None
            seat.idle_tokens = 0

    def won(self, program: Program, seat: Seat, step: Step) -> None:
        """A pin saw its program back, and the engine has said what it found cached."""
        if seat.bet is None:
            return
        found = step.expected_cached if step.cached_tokens is None else step.cached_tokens
        spared = max(min(found, seat.bet.tokens), 0)
        saved_s = seat.book.engine.restore_s(spared)
        self.accounts.settle(
            program.tenant, program.workflow, seat.bet, until=step.arrived_at, saved_s=saved_s
        )
        seat.bet = None

    def lost(self, program: Program, seat: Seat, now: float) -> None:
        """The seat is taken: what it held was held for nothing."""
        if seat.bet is not None:
            self.accounts.settle(program.tenant, program.workflow, seat.bet, until=now, saved_s=0.0)
            seat.bet = None

    def keeps(self, program: Program, seat: Seat, now: float) -> bool:
        """Whether an idle program's KV is worth its memory while others wait."""
        since = seat.kept_since if seat.kept_since is not None else now
        if self.params.ttl_s is not None:
            return now - since <= self.params.ttl_s
        if seat.until is None:
            self._pin(program, seat, since, now)
        return now < (seat.until or 0.0)

    def announced(self, program: Program, now: float) -> bool:
        """It said when it will be back, and that is not long past."""
        return program.returns_at is not None and program.returns_at + self.params.announced_s > now

    def stalled(self, book: Book, now: float) -> bool:
        """The engine runs nothing, and has not for a while, though there is work for it: no pin is worth that."""
        return not book.engine.steps and not book.held and now - book.ran_at > self.params.stall_s

    def first_to_end(self, book: Book, now: float) -> Program | None:
        """The pin that ends first, of those whose return was not announced."""
        idle = [p for p in book.seated.values() if p.idle and not self.announced(p, now)]
        return min(idle, key=lambda p: (p.own.until or 0.0, p.id), default=None)

    def _pin(self, program: Program, seat: Seat, since: float, now: float) -> None:
        """Someone wants the memory: from now on it has a price, and keeping it an end."""
        engine = seat.book.engine
        capacity = seat.book.capacity
        if not self._allowed(program, seat, capacity):
            seat.until = now
            return
        seat.until = since + self._kept_s(program, engine, capacity, since, now)
        if seat.until <= now:
            return
        tokens = min(program.context_tokens, seat.tokens)
        if seat.bet is None:
            seat.bet = self._bet(program, seat, tokens, capacity, since, now)
        self.board.pin(
            program, engine, tokens=tokens, until=seat.until, mode=engine.pin_mode, reason="worth_keeping"
        )

    def _allowed(self, program: Program, seat: Seat, capacity: float) -> bool:
        """Within its tenant's budget, and of a workflow whose pins pay."""
        share = self.board.share(program.tenant).pin_share_max
        if share < 1.0 and seat.book.idle[program.tenant] > share * capacity:
            return False
        return self.accounts.allowed(program.tenant, program.workflow)

    def _kept_s(self, program: Program, engine: Engine, capacity: float, since: float, now: float) -> float:
        """The pin's length, from the beginning of the gap."""
        longest_s = self.params.pin_s_max
        if program.returns_at is not None and self.announced(program, now):
            return min(program.returns_at - since, longest_s) + self.params.announced_s
        gap = self.board.gap(program)
        if gap is None:
            return longest_s
        context = max(program.context_tokens, 1)
        fill_s = engine.restore_s(context) * capacity / context
        return ttl_s(gap, fill_s=fill_s, price=self.params.mu, longest_s=longest_s)

    def _bet(
        self, program: Program, seat: Seat, tokens: int, capacity: float, since: float, now: float
    ) -> Bet:
        price = self.params.mu
        expected_s = 0.0
        gap = self.board.gap(program)
        if gap is not None and seat.until is not None:
            expected_s = gain_forecast_s(
                gap,
                kept_s=seat.until - since,
                elapsed=now - since,
                spared_s=seat.book.engine.restore_s(tokens),
                rent=price * tokens / capacity,
            )
        return Bet(made_at=now, tokens=tokens, price=price, capacity=capacity, expected_s=expected_s)
