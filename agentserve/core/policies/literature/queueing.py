"""The frame of the literature's queueing policies: steps wait here in an order, and go as an engine has room.

Rule: a policy built on this says in what order (`key`), where (`place`) and how long an idle program's KV is
worth keeping (`keep_s`); this frame does the rest and never loses a step. Papers that change an engine's own
scheduler are so run in front of a stock one: its queue is kept empty, hence the order here is the order there, and
a KV pin becomes a *reservation*: tokens that no other step may be dispatched into, so that the engine's LRU has
no reason to evict them.

What keeps it live: an engine on which nothing runs always takes the next step of its line. Reservations that stand
in the way are revoked first, those of the latest program before others (Continuum's rule; a policy may choose
another victim), and a step too large for the engine goes alone.

It must not know any one policy's constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId, ProgramId, StepId
from agentserve.core.policies.literature.bays import Bay, Charge, Kept, Standing
from agentserve.core.policies.literature.lines import Key, Line, Timers, stamp
from agentserve.core.policies.policy import Policy
from agentserve.core.program import WAITING, Program, Step
from agentserve.errors import InvariantBroken

KEEP_S_MAX = 3600.0  # no reservation outlives this

LineName = tuple[str, str]
NOWHERE: LineName = ("nowhere", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueingParams:
    """What every queueing policy has."""

    room: float = 0.95  # of an engine's KV, for steps in flight and reservations


class Queueing(Policy):
    """Late binding: one line per engine, or one per model where the paper has a single queue."""

    Params: ClassVar[type] = QueueingParams
    Own: ClassVar[type[Standing]] = Standing
    one_queue: ClassVar[bool] = False
    reason: ClassVar[str] = "in_turn"

    # -- what a policy says

    def key(self, step: Step, now: float) -> Key:
        """Its place in the line."""
        return (0, step.arrived_at)

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        """Which engine's line it joins: the program's own, else the one with the fewest programs."""
        return self.home(step.program, engines) or self.sparest(engines)

    def keep_s(self, program: Program, engine: Engine, now: float) -> float:
        """How long to reserve for a program whose gap begins; 0: not at all."""
        return 0.0

    def still_kept(self, program: Program, kept: Kept, now: float) -> float:
        """A reservation has run out: seconds to go on with it; 0: let go."""
        return 0.0

    def dispensable(self, program: Program, now: float) -> tuple[float, ...]:
        """How readily its reservation is revoked when it must be: the largest goes first, ties by id."""
        return (program.created_at,)

    def new_line(self) -> Line:
        """What steps stand in."""
        return Line()

    def next_step(self, line: Line, now: float) -> Step | None:
        """Who of a line goes next."""
        return line.head()

    def returned(self, step: Step, now: float) -> None:
        """A step arrived and is about to be queued."""

    def going(self, step: Step, engine: Engine, now: float) -> None:
        """A step is about to be dispatched."""

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        """A step was closed and uncharged; if its program is idle, its gap begins."""

    def left(self, program: Program, now: float) -> None:
        """A program is over; its reservation is gone."""

    def epoch(self, now: float) -> None:
        """`wake` came due, or some other timer did."""

    def wake(self) -> float | None:
        """When `epoch` is wanted."""
        return None

    # -- hooks of the scheduler

    def setup(self) -> None:
        self._bays: dict[EngineId, Bay] = {}
        self._lines: dict[LineName, Line] = {}
        self._line_of: dict[StepId, LineName] = {}
        self._charges: dict[StepId, Charge] = {}
        self._expiries = Timers()
        self._usable: dict[EngineId, tuple[bool, frozenset[str]]] = {}
        self.counts = dict.fromkeys(("kept", "returned", "expired", "revoked", "moved"), 0.0)

    def arrived(self, step: Step, now: float) -> None:
        own = self.own(step.program)
        if not step.retries:
            self.counts["returned"] += own.kept is not None
            self.returned(step, now)
            if step.relation != "auxiliary":
                own.gap_since = None
        self._join(step, now)
        self.pump(now)

    def closed(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        charge = self._charges.pop(step.id, None)
        if charge is not None:
            charge.bay.give_back(charge)
        elif step.id in self._line_of:
            self._lines[self._line_of.pop(step.id)].drop(step)
        self.over(step, now, finished=finished, engine=engine)
        program = step.program
        if program.idle and not program.ended:
            own = self.own(program)
            if finished and own.gap_since is None:  # an auxiliary step in a gap does not begin another
                own.gap_since, own.tool = now, tool_of(program)
            kept = own.kept
            if kept is not None:
                self._expiries.set(program.id, kept.until)  # its return did not happen
            elif finished and engine is not None:
                self._keep(program, engine, now)
        self.pump(now)

    def ended(self, program: Program, now: float) -> None:
        if program.own is None:
            return
        self.release(program)
        self._assign(program, None)
        self.left(program, now)
        program.own = None
        self.pump(now)

    def hinted(self, program: Program, now: float) -> None:
        self.pump(now)

    def engine_changed(self, engine: Engine, now: float) -> None:
        bay = self._bays.get(engine.id)
        if bay is None:
            bay = self._bays[engine.id] = Bay(engine)
        usable = (engine.up and not engine.draining, engine.models)
        if self._usable.get(engine.id) != usable:
            self._usable[engine.id] = usable
            if not usable[0]:
                for program in list(bay.kept.values()):
                    self.revoke(program, "engine_gone", now)
            self._rejoin(now)
        self.pump(now)

    def tick(self, now: float) -> None:
        while (due := self._expiries.first()) is not None and due < now:
            program = self.board.programs.get(ProgramId(self._expiries.take()))
            if program is not None:
                self._expire(program, now)
        self.epoch(now)
        self.pump(now)

    def deadline(self) -> float | None:
        times = [t for t in (self.wake(),) if t is not None]
        expires = self._expiries.first()
        if expires is not None:
            times.append(math.nextafter(expires, math.inf))  # a reservation holds with its last instant
        return min(times, default=None)

    # -- what a policy may use

    def own(self, program: Program) -> Standing:
        if program.own is None:
            program.own = self.Own()
        standing: Standing = program.own
        return standing

    def home(self, program: Program, engines: Iterable[Engine]) -> Engine | None:
        wanted = self.own(program).engine
        return next((e for e in engines if e.id == wanted), None)

    def sparest(self, engines: Iterable[Engine]) -> Engine:
        """The engine that the fewest live programs call home, for its speed."""
        return min(engines, key=lambda e: (self._bays[e.id].residents / e.speed, len(e.steps), e.id))

    def bay(self, engine: Engine) -> Bay:
        return self._bays[engine.id]

    def line(self, engine: Engine) -> Line | None:
        return self._lines.get(("engine", engine.id))

    def lines(self) -> Iterable[Line]:
        return self._lines.values()

    def rekey(self, step: Step, now: float) -> None:
        """Its key may have changed."""
        self._lines[self._line_of[step.id]].put(step, self.key(step, now))

    def move(self, step: Step, engine: Engine) -> None:
        """To another engine's line, with the same key."""
        before = self._lines[self._line_of[step.id]]
        key = before.key_of(step)
        before.drop(step)
        self._enter(step, ("engine", engine.id), key)
        self._assign(step.program, engine)
        self.counts["moved"] += 1

    def release(self, program: Program) -> bool:
        """Give up the program's reservation; whether there was one."""
        own = self.own(program)
        if own.kept is None:
            return False
        own.kept.bay.release(program, own.kept)
        self._expiries.drop(program.id)
        own.kept = None
        return True

    def revoke(self, program: Program, reason: str, now: float) -> None:
        """Give it up before its time, and say so. Steps that stood in line as its owner's stand there anew."""
        kept = self.own(program).kept
        if kept is None:
            return
        self.release(program)
        self.counts["revoked"] += 1
        self.board.unpin(program, kept.bay.engine, reason)
        for step in program.open_steps.values():
            if step.id in self._line_of:
                self.rekey(step, now)

    def make_room(self, step: Step, bay: Bay, now: float, reason: str) -> None:
        """Revoke others' reservations until the step fits, or none is left."""
        others = (p for p in bay.kept.values() if p is not step.program)
        order = sorted(others, key=lambda p: (self.dispensable(p, now), p.id))
        while order and not self.fits(step, bay):
            self.revoke(order.pop(), reason, now)

    def fits(self, step: Step, bay: Bay) -> bool:
        """Whether the engine has room for the step beside what runs and what is reserved."""
        return bay.fits(step, self.own(step.program).kept, self.params.room)

    def pump(self, now: float) -> None:
        """Dispatch from the head of every line while there is room."""
        for name in list(self._lines):
            line = self._lines[name]
            while (step := self.next_step(line, now)) is not None:
                bay = self._find(step, name, now)
                if bay is None:
                    break
                self._go(step, bay, now)
            if not line:
                del self._lines[name]

    # -- queueing

    def _join(self, step: Step, now: float) -> None:
        engines = self.board.fleet.usable(step.model)
        if self.one_queue:
            self._enter(step, ("model", step.model), self.key(step, now))
        elif engines:
            engine = self.place(step, engines, now)
            self._assign(step.program, engine)
            self._enter(step, ("engine", engine.id), self.key(step, now))
        else:
            self._enter(step, NOWHERE, self.key(step, now))
        if not engines:
            self.board.wait(step, "no_engine")

    def _enter(self, step: Step, name: LineName, key: Key) -> None:
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = self.new_line()
        line.put(step, key)
        self._line_of[step.id] = name

    def _rejoin(self, now: float) -> None:
        """Engines came or went: steps in the line of one that cannot serve them join another."""
        for name in list(self._lines):
            for step in self._lines[name]:
                if name == NOWHERE or (
                    name[0] == "engine" and not self.board.fleet[EngineId(name[1])].usable(step.model)
                ):
                    self._lines[name].drop(step)
                    self._join(step, now)

    def _assign(self, program: Program, engine: Engine | None) -> None:
        """The program's home from now on; a reservation elsewhere is of no use any more."""
        own = self.own(program)
        new = None if engine is None else engine.id
        if own.engine == new:
            return
        if own.engine is not None:
            self._bays[own.engine].residents -= 1
        if new is not None:
            self._bays[new].residents += 1
        own.engine = new
        if own.kept is not None and own.kept.bay.engine.id != new:
            self.release(program)

    # -- dispatching

    def _find(self, step: Step, name: LineName, now: float) -> Bay | None:
        """Where the step can go now."""
        if name[0] == "engine":
            bays = [self._bays[EngineId(name[1])]]
        else:
            bays = [self._bays[e.id] for e in self.board.fleet.usable(step.model)]
        roomy = [b for b in bays if self.fits(step, b)]
        if not roomy:
            return self._unblock(step, bays, now)
        at_home = next((b for b in roomy if b.engine.id == self.own(step.program).engine), None)
        return at_home or min(roomy, key=lambda b: (b.load / b.engine.speed, b.engine.id))

    def _unblock(self, step: Step, bays: list[Bay], now: float) -> Bay | None:
        """It fits nowhere. Where nothing runs, waiting would last for ever: reservations go, then it goes anyhow."""
        idle = [b for b in bays if not b.engine.steps]
        if not idle:
            return None
        bay = min(idle, key=lambda b: (b.load / b.engine.speed, b.engine.id))
        self.make_room(step, bay, now, "blocked")
        return bay

    def _go(self, step: Step, bay: Bay, now: float) -> None:
        line = self._lines[self._line_of.pop(step.id)]
        key = line.key_of(step)
        line.drop(step)
        self._assign(step.program, bay.engine)
        self.going(step, bay.engine, now)
        self.release(step.program)
        self._charges[step.id] = bay.take(step)
        self.board.dispatch(step, bay.engine, now, self.reason, priority=stamp(key))

    # -- reservations

    def _keep(self, program: Program, engine: Engine, now: float) -> None:
        if not engine.usable(""):
            return
        seconds = min(self.keep_s(program, engine, now), KEEP_S_MAX)
        if seconds <= 0:
            return
        bay = self._bays[engine.id]
        own = self.own(program)
        own.kept = bay.keep(program, now, now + seconds)
        self._expiries.set(program.id, own.kept.until)
        self.counts["kept"] += 1
        self.board.pin(
            program,
            engine,
            tokens=program.context_tokens,
            until=own.kept.until,
            mode="reserved",
            reason="ttl",
        )

    def _expire(self, program: Program, now: float) -> None:
        """Its time is over, unless its return is already queued or the policy goes on with it."""
        kept = self.own(program).kept
        if kept is None or kept.until >= now or not program.idle:
            return
        more = min(self.still_kept(program, kept, now), kept.since + KEEP_S_MAX - now)
        if more > 0:
            kept.until = now + more
            self._expiries.set(program.id, kept.until)
            return
        self.release(program)
        self.counts["expired"] += 1
        self.board.unpin(program, kept.bay.engine, "expired")

    # -- for others

    def check(self) -> None:
        for bay in self._bays.values():
            charges = [c for c in self._charges.values() if c.bay is bay]
            bay.check(charges + [kept for p in bay.kept.values() if (kept := self.own(p).kept) is not None])
        listed = [step for line in self._lines.values() for step in line]
        if len(listed) != len(self._line_of) or len(listed) != len(self.board.waiting):
            raise InvariantBroken(f"{len(self.board.waiting)} steps wait, {len(listed)} stand in lines")
        for step in listed:
            if step.state is not WAITING or step.id not in self._line_of:
                raise InvariantBroken(f"step {step.id} stands in a line but is {step.state}")
            name = self._line_of[step.id]
            for engine in self.board.fleet.usable(step.model):
                if not engine.steps and name in (("engine", engine.id), ("model", step.model), NOWHERE):
                    raise InvariantBroken(f"engine {engine.id} is idle while step {step.id} waits for it")

    def figures(self) -> dict[str, float]:
        return dict(self.counts)


def tool_of(program: Program) -> str:
    """What the program waits for; parallel calls are one tool of several names, no call is none."""
    return "+".join(sorted({t.name for t in (program.pending or {}).values()}))
