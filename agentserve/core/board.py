"""What a policy plays on: the programs, steps and engines, and the moves it may make.

Rule: every decision is made through a method here, so that the records can never disagree with what was decided.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass, field

from agentserve.core.decisions import Abort, AnyDecision, Dispatch, Pin, PinMode, Reject, Unpin, Wait, Warm
from agentserve.core.events import PriorityClass
from agentserve.core.fleet import Engine, Fleet
from agentserve.core.foresight import Foresight, Survival
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.core.prefixes import Common
from agentserve.core.program import CLOSED, DISPATCHED, WAITING, Program, Step
from agentserve.errors import InvariantBroken

CLASS_RANK: dict[PriorityClass, int] = {"interactive": 0, "standard": 1, "batch": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a tenant is entitled to."""

    weight: float = 1.0
    priority_max: PriorityClass = "interactive"
    pin_share_max: float = 1.0


PLAIN_SHARE = Share()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of the scheduler's own memory and patience."""

    waiting_steps_max: int = 10_000
    live_programs_max: int = 200_000
    queue_timeout_s: float = 600.0
    program_idle_s: float = 1800.0


@dataclass(slots=True, kw_only=True)
class Board:
    """The state that scheduler and policy share."""

    foresight: Foresight
    limits: Limits = field(default_factory=Limits)
    seed: int = 1
    shares: dict[TenantId, Share] = field(default_factory=dict)
    fleet: Fleet = field(default_factory=Fleet)
    common: Common = field(default_factory=Common)
    programs: OrderedDict[ProgramId, Program] = field(default_factory=OrderedDict)  # least lately seen first
    steps: dict[StepId, Step] = field(default_factory=dict)
    waiting: OrderedDict[StepId, Step] = field(default_factory=OrderedDict)  # by arrival
    out: list[AnyDecision] = field(default_factory=list)
    cause: str = ""
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def share(self, tenant: TenantId) -> Share:
        return self.shares.get(tenant) or PLAIN_SHARE

    def gap(self, program: Program) -> Survival | None:
        """When the program comes back from the gap that it is in; made when it is first asked for, as few gaps are."""
        if program.gap_started_at is None:
            return None
        if program.survival is None:
            program.survival = self.foresight.gap(program, program.gap_started_at)
        found: Survival = program.survival
        return found

    # -- moves

    def dispatch(
        self, step: Step, engine: Engine, now: float, reason: str, *, priority: int = 0, detail: str = ""
    ) -> None:
        """Send a waiting step to an engine."""
        if step.state is not WAITING:
            raise InvariantBroken(f"step {step.id} is {step.state} and cannot be dispatched")
        del self.waiting[step.id]
        step.state = DISPATCHED
        self.fleet.placed(step, engine, now)
        self.out.append(
            Dispatch(
                step=step.id,
                engine=engine.id,
                priority=priority,
                expected_cached_tokens=step.expected_cached,
                cause=self.cause,
                reason=reason,
                detail=detail,
            )
        )

    def wait(self, step: Step, reason: str, *, expected_s: float | None = None, detail: str = "") -> None:
        """Say why a step is held; it stays in `waiting`."""
        self.out.append(
            Wait(step=step.id, expected_s=expected_s, cause=self.cause, reason=reason, detail=detail)
        )

    def reject(self, step: Step, reason: str, *, status: int, retry_after_s: float) -> None:
        """Refuse a waiting step."""
        self.waiting.pop(step.id, None)
        self.steps.pop(step.id, None)
        step.program.open_steps.pop(step.id, None)
        step.state = CLOSED
        self.out.append(
            Reject(step=step.id, status=status, retry_after_s=retry_after_s, cause=self.cause, reason=reason)
        )

    def abort(self, step: Step, reason: str) -> None:
        """Close a step upstream; what becomes of it is the caller's business."""
        if step.engine is not None:
            self.out.append(Abort(step=step.id, engine=step.engine, cause=self.cause, reason=reason))

    def pin(
        self,
        program: Program,
        engine: Engine,
        *,
        tokens: int,
        until: float,
        mode: PinMode,
        reason: str,
        detail: str = "",
    ) -> None:
        self.out.append(
            Pin(
                program=program.id,
                engine=engine.id,
                tokens=tokens,
                until=until,
                mode=mode,
                cause=self.cause,
                reason=reason,
                detail=detail,
            )
        )

    def unpin(self, program: Program, engine: Engine, reason: str, detail: str = "") -> None:
        self.out.append(
            Unpin(program=program.id, engine=engine.id, cause=self.cause, reason=reason, detail=detail)
        )

    def warm(
        self, program: Program, engine: Engine, *, tokens: int, due: float, reason: str, refresh: bool = False
    ) -> None:
        self.out.append(
            Warm(
                program=program.id,
                engine=engine.id,
                tokens=tokens,
                due=due,
                refresh=refresh,
                cause=self.cause,
                reason=reason,
            )
        )
        if refresh and program.home == engine.id:
            program.home_clock = engine.written

    # -- for tests and simulations

    def check(self) -> None:
        """Every invariant of the records; cheap enough for tests, not for the request's path."""
        for step in self.steps.values():
            if step.state is CLOSED:
                raise InvariantBroken(f"closed step {step.id} is still listed")
            if (step.state is WAITING) != (step.id in self.waiting):
                raise InvariantBroken(f"step {step.id} is {step.state} but waiting says otherwise")
            if step.program.open_steps.get(step.id) is not step:
                raise InvariantBroken(f"step {step.id} is unknown to its program")
            if step.in_flight and step.id not in self.fleet[EngineId(step.engine or "")].steps:
                raise InvariantBroken(f"step {step.id} is in flight but not on its engine")
        for engine in self.fleet:
            if sum(s.footprint for s in engine.steps.values()) != engine.in_flight_tokens:
                raise InvariantBroken(f"engine {engine.id}: footprints do not add up")
            for step_id in engine.steps:
                if step_id not in self.steps:
                    raise InvariantBroken(f"engine {engine.id} runs unknown step {step_id}")
        seen = -1e18
        for program in self.programs.values():
            if program.last_seen_at < seen:
                raise InvariantBroken(f"program {program.id} is out of order")
            seen = program.last_seen_at
            if program.ended and not program.open_steps:
                raise InvariantBroken(f"ended program {program.id} was not dropped")
