"""Pins: seats in gaps, how long each is worth its memory, what it cost and saved, and which an LRU would evict.

Rule: a pin has a price only while others wait. Who waits, and who goes where, is not decided here.
"""

from __future__ import annotations

from agentserve.core.board import Board
from agentserve.core.fleet import Engine
from agentserve.core.forecast.survival import Keeping
from agentserve.core.pins import Bet, PinAccounts
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.seats import Book, Seat
from agentserve.core.program import DISPATCHED, Program, Step


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
        self.used(program, seat.book)

    def restore(self, program: Program, seat: Seat, now: float) -> None:
        """Seated ahead of its return: its KV is brought back, if the engine has nothing else to prefill."""
        self.begin(program, seat, now)
        engine = seat.book.engine
        prefilling = any(s.state is DISPATCHED for s in engine.steps.values())
        there = self.board.fleet.expected_cached(program, engine)
        if not prefilling and there < program.context_tokens:
            due = max(program.returns_at or now, now)
            self.board.warm(program, engine, tokens=program.context_tokens, due=due, reason="announced")

    def used(self, program: Program, book: Book) -> None:
        """Its KV was last used when its clock says, which may be another engine's."""
        if program.home_clock < book.oldest:
            book.oldest = program.home_clock

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

    def _touchable(self, book: Book) -> tuple[list[Program], bool]:
        """Idle seats that an LRU would evict before newer blocks of the dead; and whether any may be so later.

        What is evicted already is left alone: to touch it would be to prefill it again, in the way of those who run,
        for a program of which nobody knows whether it comes back. So it is where few fit: one prompt there pushes out
        all that is at risk before anyone could touch it.
        """
        engine, params = book.engine, self.params
        if not params.touch_s or not engine.up or book.load < params.touch_from * book.capacity:
            return [], False
        if book.load > params.touch_seat_max * book.capacity * len(book.seated):
            return [], False
        margins = len(book.seated) * book.margin  # kept free, so an eviction takes them first
        risk = params.touch_risk * max(engine.kv_tokens - book.load + margins, 0)
        safe_from = engine.written - risk
        if book.oldest >= safe_from:  # nearly always; then whether there is any is soon found
            return [], any(self._is_ours_to_touch(p, engine) for p in book.seated.values())
        at_risk, later, oldest = [], False, engine.written
        for p in book.seated.values():
            if self._is_ours_to_touch(p, engine) and engine.keeps(p):
                later = True
                if p.home_clock < safe_from:
                    at_risk.append(p)
                    continue
            if p.idle:
                oldest = min(oldest, p.home_clock)
        book.oldest = oldest  # of all but those that are touched now: `used` is told of these
        return at_risk, later

    def touch(self, book: Book, now: float) -> tuple[int, bool]:
        """Refresh those that the engine would evict: how many, and whether any may be at risk later."""
        at_risk, later = self._touchable(book)
        for program in at_risk:
            self.board.warm(
                program, book.engine, tokens=program.context_tokens, due=now, reason="touch", refresh=True
            )
            self.used(program, book)
        return len(at_risk), later

    def _is_ours_to_touch(self, program: Program, engine: Engine) -> bool:
        """Idle, and not held by the engine itself: a native pin that has an end is the engine's to keep."""
        return not program.open_steps and not (engine.pin_mode == "native" and program.own.until is not None)

    def _pin(self, program: Program, seat: Seat, since: float, now: float) -> None:
        """Someone wants the memory: from now on it has a price, and keeping it an end."""
        engine = seat.book.engine
        capacity = seat.book.capacity
        if not self._allowed(program, seat, capacity):
            seat.until = now
            return
        keeping = self._keeping(program, engine, capacity, since, now)
        seat.until = now + keeping.ttl_s
        if keeping.ttl_s <= 0.0:
            return
        tokens, price = min(program.context_tokens, seat.tokens), self.params.mu
        if seat.bet is None:
            rent = price * tokens / capacity
            gain_s = keeping.back * engine.restore_s(tokens) - keeping.held_s * rent
            seat.bet = Bet(made_at=now, tokens=tokens, price=price, capacity=capacity, expected_s=gain_s)
        self.board.pin(
            program, engine, tokens=tokens, until=seat.until, mode=engine.pin_mode, reason="worth_keeping"
        )

    def _allowed(self, program: Program, seat: Seat, capacity: float) -> bool:
        """Within its tenant's budget, and of a workflow whose pins pay."""
        share = self.board.share(program.tenant).pin_share_max
        if share < 1.0 and seat.book.idle[program.tenant] > share * capacity:
            return False
        return self.accounts.allowed(program.tenant, program.workflow)

    def _keeping(
        self, program: Program, engine: Engine, capacity: float, since: float, now: float
    ) -> Keeping:
        """How much longer to keep it, and what is to be expected of that."""
        longest_s = since + self.params.pin_s_max - now
        if program.returns_at is not None and self.announced(program, now):
            away_s = program.returns_at - now
            return Keeping(min(away_s, longest_s) + self.params.announced_s, 1.0, max(away_s, 0.0))
        gap = self.board.gap(program)
        if gap is None or program.gap_started_at is None or not self.params.mu:
            return Keeping(longest_s, 0.0, longest_s)
        context = max(program.context_tokens, 1)
        fill_s = engine.restore_s(context) * capacity / context
        return gap.keeping(fill_s / self.params.mu, longest_s, now - program.gap_started_at)
