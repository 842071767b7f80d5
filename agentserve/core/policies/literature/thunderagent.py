"""ThunderAgent: pause whole programs when their contexts outgrow an engine, and resume them anywhere.

Intent: end KV thrashing by admitting programs, not steps, by capacity. The published system nearest to ours.
Reads: context lengths, whether a program reasons (has a step open) or acts (runs a tool), engine capacity.

Every `tick_s`: an engine thrashes when `C * lambda_pause < sum of reasoning c + sum of acting c * f(t)`, c being a
program's tokens with a buffer of 100. Then programs are paused by the highest `1/c + I(acting)`: acting ones at once,
reasoning ones marked and paused when their step ends. Paused programs of the whole fleet stand in one queue and are
restored by the highest `1/c + I(reasoning)` while `C * lambda_resume` holds them, placed best-fit-decreasing; one that
waited 1800 s is restored whatever the room.

`marking_bug`: in the public code the marked do not count as leaving, so that once the acting are exhausted *every*
reasoning program is marked. Off by default here.

Loses: one threshold pauses and restores in turn; smallest-first starves long contexts; shared prefixes are charged to
each program that has them; a program in a gap of any length keeps its place (f(t) is 1) unless `half_life_s` is set.

Departs: f(t) = 2^-t is the paper's, the public code leaves it off, so does the default (`half_life_s` 0; the paper's
is 1). Tokens are counted, not guessed from characters. An engine whose programs are all paused takes the next one at
once, however large, and an engine's last program is not paused: both would otherwise wait for the 1800 s. A fresh
program that fits is let in between ticks when no paused one wants to run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId, ProgramId
from agentserve.core.policies.policy import Policy
from agentserve.core.program import WAITING, Program, Step
from agentserve.errors import InvariantBroken


@dataclass(frozen=True, slots=True, kw_only=True)
class ThunderAgentParams:
    """The public code's constants."""

    tick_s: float = 5.0
    lambda_pause: float = 1.0  # of capacity, beyond which programs are paused
    lambda_resume: float = 1.0  # of capacity, up to which they are restored
    buffer_tokens: int = 100
    half_life_s: float = 0.0  # of an acting program's weight; 0: it keeps its weight
    force_after_s: float = 1800.0
    marking_bug: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """Where a program is: on an engine, or paused (`house` is None)."""

    house: House | None = None
    tokens: int = 0  # charged to the house
    marked: bool = False  # to be paused when its step ends
    paused_at: float = 0.0


@dataclass(slots=True, eq=False)
class House:
    """One engine and its programs."""

    engine: Engine
    active: dict[ProgramId, Program] = field(default_factory=dict)
    load: int = 0


class ThunderAgent(Policy):
    """Pause and resume programs by capacity."""

    name = "thunderagent"
    Params = ThunderAgentParams
    params: ThunderAgentParams

    def setup(self) -> None:
        self._houses: dict[EngineId, House] = {}
        self._paused: dict[ProgramId, Program] = {}  # the longest paused first
        self._wanting: dict[ProgramId, Program] = {}  # those of them that have steps waiting
        self._next_tick: float | None = None
        self._counts = dict.fromkeys(("paused", "marked", "restored", "forced"), 0.0)

    # -- hooks

    def arrived(self, step: Step, now: float) -> None:
        program = step.program
        fresh = program.own is None
        if fresh:
            program.own = Place(paused_at=now)
            self._paused[program.id] = program
        place: Place = program.own
        if place.house is not None and not place.house.engine.usable(step.model):
            self._pause(program, now)
        if place.house is not None:
            self._charge(program)
            self.board.dispatch(step, place.house.engine, now, "active")
        else:
            alone = not self._wanting
            self._wanting[program.id] = program
            if fresh and alone:
                self._restore_if_it_fits(program, now)
            if step.state is WAITING:
                self.board.wait(step, "paused")
        self._revive(now)
        self._arm(now)

    def closed(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        program = step.program
        place: Place | None = program.own
        if place is None:
            return
        if place.house is not None:
            self._charge(program)
            if place.marked and program.idle:
                self._pause(program, now)
        elif not waiting_of(program):
            self._wanting.pop(program.id, None)
        self._revive(now)
        self._arm(now)

    def ended(self, program: Program, now: float) -> None:
        place: Place | None = program.own
        if place is None:
            return
        if place.house is not None:
            self._leave(program)
        self._paused.pop(program.id, None)
        self._wanting.pop(program.id, None)
        program.own = None
        self._revive(now)

    def engine_changed(self, engine: Engine, now: float) -> None:
        house = self._houses.get(engine.id)
        if house is None:
            house = self._houses[engine.id] = House(engine)
        if not engine.up or engine.draining:
            for program in list(house.active.values()):
                if program.idle or not engine.up:
                    self._pause(program, now)
                else:
                    program.own.marked = True
            self._restore(now)
        self._revive(now)
        self._arm(now)

    def tick(self, now: float) -> None:
        if self._next_tick is not None and now >= self._next_tick:
            self._next_tick = None
            for house in self._houses.values():
                self._pause_until_safe(house, now)
            self._restore(now)
            self._revive(now)
        self._arm(now)

    def deadline(self) -> float | None:
        return self._next_tick

    # -- pausing

    def _pause_until_safe(self, house: House, now: float) -> None:
        """Acting programs first, the smallest first; then reasoning ones, which leave when their step ends."""
        limit = self.params.lambda_pause * house.engine.kv_tokens
        if house.load <= limit:  # the decayed demand is never more than the load
            return
        over = self._demand(house, now) - limit
        if not self.params.marking_bug:
            over -= sum(p.own.tokens for p in house.active.values() if p.own.marked)
        by_size = sorted(house.active.values(), key=lambda p: (p.own.tokens, p.id))
        for program in [p for p in by_size if p.idle]:
            if over <= 0 or len(house.active) == 1:
                return
            over -= self._weight(program, now) * program.own.tokens
            self._pause(program, now)
        staying = [p for p in by_size if not p.idle and not p.own.marked]
        for program in staying[: len(staying) - 1] if len(staying) == len(house.active) else staying:
            if over <= 0:
                return
            program.own.marked = True
            self._counts["marked"] += 1
            if not self.params.marking_bug:
                over -= program.own.tokens

    def _demand(self, house: House, now: float) -> float:
        if not self.params.half_life_s:
            return house.load
        return float(sum(self._weight(p, now) * p.own.tokens for p in house.active.values()))

    def _weight(self, program: Program, now: float) -> float:
        """f(t) of the time it has been acting."""
        if not self.params.half_life_s or not program.idle or program.gap_started_at is None:
            return 1.0
        return float(2.0 ** (-(now - program.gap_started_at) / self.params.half_life_s))

    def _pause(self, program: Program, now: float) -> None:
        house = self._leave(program)
        program.own.paused_at = now
        self._paused[program.id] = program
        if waiting_of(program):
            self._wanting[program.id] = program
        self._counts["paused"] += 1
        self.board.unpin(program, house.engine, "paused")

    def _leave(self, program: Program) -> House:
        place: Place = program.own
        house = place.house
        if house is None:
            raise InvariantBroken(f"program {program.id} is on no engine")
        del house.active[program.id]
        house.load -= place.tokens
        place.house, place.tokens, place.marked = None, 0, False
        return house

    # -- restoring

    def _restore(self, now: float) -> None:
        """By score as many as fit in all, then each where it fits best, the largest first."""
        free = {h.engine.id: self._free(h, now) for h in self._houses.values() if h.engine.usable("")}
        if not self._paused or not free:
            return
        self._force(now)
        total = sum(max(f, 0.0) for f in free.values())
        chosen = []
        by_score = sorted(
            self._paused.values(), key=lambda p: (p.id not in self._wanting, self._size(p), p.id)
        )
        for program in by_score:
            size = self._size(program)
            if size > total:
                break
            total -= size
            chosen.append((size, program))
        for size, program in sorted(chosen, key=lambda c: (-c[0], c[1].id)):
            fitting = [h for h in self._serving(program) if free.get(h.engine.id, -1.0) >= size]
            if fitting:
                house = min(fitting, key=lambda h: (free[h.engine.id], h.engine.id))
                free[house.engine.id] -= size
                self._enter(program, house, now)

    def _force(self, now: float) -> None:
        for program in list(self._paused.values()):
            if program.own.paused_at + self.params.force_after_s > now:
                break
            houses = self._serving(program)
            if houses and program.id in self._wanting:
                self._counts["forced"] += 1
                self._enter(program, max(houses, key=lambda h: (self._free(h, now), h.engine.id)), now)

    def _restore_if_it_fits(self, program: Program, now: float) -> None:
        roomy = [h for h in self._serving(program) if self._free(h, now) >= self._size(program)]
        if roomy:
            self._enter(program, min(roomy, key=lambda h: (h.load / h.engine.speed, h.engine.id)), now)

    def _revive(self, now: float) -> None:
        """An engine without programs takes the best paused one that wants to run, whatever its size."""
        if not self._wanting:
            return
        for house in self._houses.values():
            if house.active or not house.engine.usable(""):
                continue
            able = [p for p in self._wanting.values() if house in self._serving(p)]
            if able:
                self._enter(min(able, key=lambda p: (self._size(p), p.id)), house, now)

    def _enter(self, program: Program, house: House, now: float) -> None:
        del self._paused[program.id]
        self._wanting.pop(program.id, None)
        program.own.house = house
        house.active[program.id] = program
        self._charge(program)
        self._counts["restored"] += 1
        for step in waiting_of(program):
            self.board.dispatch(step, house.engine, now, "restored")

    def _serving(self, program: Program) -> list[House]:
        """Engines that can take all its waiting steps."""
        models = {s.model for s in waiting_of(program)} or {""}
        return [h for h in self._houses.values() if all(h.engine.usable(m) for m in models)]

    def _free(self, house: House, now: float) -> float:
        return self.params.lambda_resume * house.engine.kv_tokens - self._demand(house, now)

    # -- sizes and times

    def _size(self, program: Program) -> int:
        """c: the context, or the prompts of the open steps, and the buffer."""
        prompts = sum(s.prompt_tokens for s in program.open_steps.values())
        return (prompts or program.context_tokens) + self.params.buffer_tokens

    def _charge(self, program: Program) -> None:
        place: Place = program.own
        if place.house is not None:
            size = self._size(program)
            place.house.load += size - place.tokens
            place.tokens = size

    def _arm(self, now: float) -> None:
        """The tick runs while there is anything it could do."""
        if self._next_tick is None and (self._paused or self._over(self._houses.values())):
            self._next_tick = now + self.params.tick_s

    def _over(self, houses: Iterable[House]) -> bool:
        return any(h.load > self.params.lambda_pause * h.engine.kv_tokens for h in houses)

    # -- for others

    def check(self) -> None:
        for house in self._houses.values():
            if sum(p.own.tokens for p in house.active.values()) != house.load:
                raise InvariantBroken(f"{house.engine.id}: its programs do not add up to its load")
        for step in self.board.waiting.values():
            if step.program.id not in self._wanting or step.program.own.house is not None:
                raise InvariantBroken(f"step {step.id} waits, but its program is not paused")
        for program in self._wanting.values():
            if not all(h.active for h in self._serving(program)):
                raise InvariantBroken(f"an engine is empty while program {program.id} is paused")
        if self._paused and self._next_tick is None:
            raise InvariantBroken("programs are paused and no tick is set")

    def figures(self) -> dict[str, float]:
        return dict(self._counts)


def waiting_of(program: Program) -> list[Step]:
    return [s for s in program.open_steps.values() if s.state is WAITING]
