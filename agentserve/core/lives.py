"""What a `Story` keeps of programs and of what is theirs, and the facts that each becomes when it is over.

Rule: records only; when they begin and end is said in `story`.
"""

from __future__ import annotations

import math

import msgspec

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.facts import PinEnd, PinMade, PinOver, ProgramClosed, ToolCallOver, WarmEnd, WarmOver


class Pinned(msgspec.Struct):
    """KV that is kept."""

    engine: str
    made_at: float
    tokens: int
    until: float
    mode: do.PinMode = "reserved"

    def made(self, program: Life, reason: str) -> PinMade:
        """It begins."""
        return PinMade(
            program=program.id,
            tenant=program.tenant,
            workflow=program.workflow,
            engine=self.engine,
            at=self.made_at,
            tokens=self.tokens,
            until=self.until,
            mode=self.mode,
            reason=reason,
        )

    def over(self, program: Life, now: float, end: PinEnd, reason: str, *, announced: bool) -> PinOver:
        """What became of it."""
        return PinOver(
            program=program.id,
            tenant=program.tenant,
            workflow=program.workflow,
            engine=self.engine,
            made_at=self.made_at,
            at=now,
            tokens=self.tokens,
            mode=self.mode,
            end=end,
            reason=reason,
            held_s=max(now - self.made_at, 0.0),
            announced=announced,
        )


class Warming(msgspec.Struct):
    """A prefix that is brought back."""

    decision: do.Warm
    made_at: float
    done: bool = False
    cached_tokens: int | None = None

    def over(self, program: Life, now: float, end: WarmEnd) -> WarmOver:
        """What became of it."""
        decided = self.decision
        return WarmOver(
            program=program.id,
            tenant=program.tenant,
            workflow=program.workflow,
            engine=decided.engine,
            made_at=self.made_at,
            at=now,
            tokens=decided.tokens,
            due=decided.due,
            refresh=decided.refresh,
            end=end,
            cached_tokens=self.cached_tokens,
            reason=decided.reason,
        )


class Out(msgspec.Struct):
    """A tool call that is out."""

    tool: ev.PendingTool
    step: str
    started_at: float

    def over(
        self,
        program: Life,
        seconds: float,
        *,
        beside: int = 0,
        measured: bool = False,
        censored: bool = False,
        ok: bool = True,
    ) -> ToolCallOver:
        """It came back, or its program went on without it."""
        tool = self.tool
        return ToolCallOver(
            program=program.id,
            tenant=program.tenant,
            workflow=program.workflow,
            id=tool.id,
            name=tool.name,
            step=self.step,
            kind=tool.kind,
            argument_class=tool.argument_class,
            exact_hash=tool.exact_hash,
            pipes=tool.pipes,
            chain=tool.chain,
            timeout_s=tool.timeout_s,
            background=tool.background,
            started_at=self.started_at,
            seconds=max(seconds, 0.0),
            measured=measured,
            censored=censored,
            ok=ok,
            beside=beside,
        )


class KeptLife(msgspec.Struct, frozen=True, kw_only=True):
    """What an earlier gateway wrote down of a program that was not over when it ended."""

    program: str
    tenant: str
    opened_at: float
    last_at: float  # when its last step ended
    parent: str | None = None
    workflow: str | None = None
    steps: int = 0
    failed_steps: int = 0
    queue_s: float = 0.0
    human_s: float = 0.0
    tool_s: float = 0.0
    turn_done: bool = False


class Life:
    """A program that is not over."""

    __slots__ = (
        "context_tokens", "delay_before_s", "failed", "free_at", "gap_at", "human_s", "id", "last_at", "main_open",
        "opened_at", "out", "over", "parent", "pin", "queue_s", "seen_at", "steps", "steps_open", "tenant", "tool_s",
        "turn_done", "warm", "workflow",
    )  # fmt: skip

    def __init__(self, program: str, tenant: str, parent: str | None, now: float) -> None:
        self.id = program
        self.tenant = tenant
        self.parent = parent
        self.workflow: str | None = None
        self.opened_at = self.seen_at = self.last_at = now
        self.steps = self.failed = self.steps_open = 0
        self.queue_s = self.human_s = self.tool_s = 0.0
        # of its steps under way beside one another, auxiliary ones aside: how many, when the last would have ended had
        # none of them waited, and the delay before them
        self.main_open = 0
        self.free_at = self.delay_before_s = 0.0
        self.context_tokens = 0
        self.gap_at: float | None = None
        self.turn_done = False
        self.over = ""  # why, once that was told: with its last open step
        self.out: dict[str, Out] = {}
        self.pin: Pinned | None = None
        self.warm: Warming | None = None

    @classmethod
    def taken_up(cls, kept: KeptLife) -> Life:
        """As it was when it was last heard of. What its context was is not known, nor which tools were out."""
        life = cls(kept.program, kept.tenant, kept.parent, kept.opened_at)
        life.workflow = kept.workflow
        life.seen_at = life.last_at = kept.last_at
        life.steps, life.failed = kept.steps, kept.failed_steps
        # the sum of steps' waits is all that was written: of steps beside one another it may be more than the whole
        life.queue_s = min(kept.queue_s, max(kept.last_at - kept.opened_at - kept.human_s - kept.tool_s, 0.0))
        life.human_s, life.tool_s, life.turn_done = kept.human_s, kept.tool_s, kept.turn_done
        life.gap_at = kept.last_at if kept.steps else None
        return life

    def began(self) -> None:
        """One more step of its main line is under way."""
        if not self.main_open:
            self.free_at, self.delay_before_s = -math.inf, self.queue_s
        self.main_open += 1

    def ended(self, now: float, waited_s: float) -> None:
        """A step of its main line is over, which would have been sooner by what it waited."""
        self.main_open -= 1
        if now - waited_s > self.free_at:
            self.free_at = now - waited_s
        self.queue_s = self.delay_before_s + now - self.free_at

    def closed(self, reason: str) -> ProgramClosed:
        """It is over, when its last step ended."""
        seconds = max(self.last_at - self.opened_at - self.human_s, 0.0)
        plain = seconds - self.queue_s
        return ProgramClosed(
            program=self.id,
            tenant=self.tenant,
            workflow=self.workflow,
            at=self.last_at,
            reason=reason,
            opened_at=self.opened_at,
            parent=self.parent,
            steps=self.steps,
            failed_steps=self.failed,
            seconds=seconds,
            queue_s=self.queue_s,
            human_s=self.human_s,
            tool_s=self.tool_s,
            slowdown=seconds / plain if plain > 1e-9 else 1.0,
        )


class OpenStep(msgspec.Struct):
    """A step that is under way."""

    program: Life
    compared: int  # how much of its prompt was computed before
    gap_at: float | None  # when the gap began that it ended
    returns: bool  # it came back from a gap, and was not sent yet
    auxiliary: bool
    waits_since: float | None
    waited_s: float = 0.0
    engine: str = ""
    retries: int = 0
    hit: PinOver | None = None  # the pin that it came back to
