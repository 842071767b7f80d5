"""The scheduler's own record of programs and steps: mutable, small, and known to nothing outside the core.

Rule: these records hold facts and counts. What they mean for an order or a place is a policy's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agentserve.core.events import PendingTool, PriorityClass, Relation, Segment
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId

FOUND_SHARE = 0.1  # of a step's own prompt, found cached: more than the ends of blocks


class StepState(StrEnum):
    """Where a step is. It only moves down this list, but for a retry, which goes back to WAITING once."""

    WAITING = "waiting"  # in the proxy
    DISPATCHED = "dispatched"  # sent to an engine, no byte yet
    STARTED = "started"  # bytes flow
    CLOSED = "closed"


WAITING, DISPATCHED, STARTED, CLOSED = StepState  # by the class each is found in eight times the time


@dataclass(slots=True, eq=False, kw_only=True)
class Step:
    """One LLM call."""

    id: StepId
    program: Program
    arrived_at: float
    prompt_tokens: int
    output_tokens: float  # the forecast, until the real count is known
    output_tokens_max: int | None = None
    model: str = ""
    relation: Relation = "continues"
    state: StepState = WAITING
    engine: EngineId | None = None
    dispatched_at: float | None = None
    started_at: float | None = None
    retries: int = 0
    footprint: int = 0  # KV tokens charged to its engine while it is there
    expected_cached: int = 0
    cached_tokens: int | None = None  # what the engine said it found, once it is finished
    cause: str = ""

    @property
    def in_flight(self) -> bool:
        return self.state is DISPATCHED or self.state is STARTED


@dataclass(slots=True, eq=False, kw_only=True)
class Program:
    """One run of an agent. A live one costs at most a few kilobytes; an ended one is dropped."""

    id: ProgramId
    tenant: TenantId
    created_at: float
    workflow: WorkflowId | None = None
    parent: ProgramId | None = None
    priority: PriorityClass = "standard"
    deadline_at: float | None = None
    role: int = 0
    prefix: tuple[Segment, ...] = ()
    shared_tokens: int = 0  # of the prefix: the leading tokens that other programs may share
    begins: int | None = None  # the name of its present prompt's first piece
    moved: bool = False  # its present prompt begins with other segments than the one before
    undivided: bool = False  # its present prompt is one piece, in which nothing tells what others may share
    carries: bool = True  # its next prompt is believed to find what its steps have left
    tools_offered: int = 0
    model: str = ""  # of its latest step

    # what it has done
    steps_done: int = 0
    context_tokens: int = 0  # prompt and output of its latest step
    output_tokens_total: int = 0
    attained_s: float = 0.0  # seconds its steps spent on engines

    # what it does now
    open_steps: dict[StepId, Step] = field(default_factory=dict)
    pending: dict[str, PendingTool] | None = None  # tool calls out, by id
    calls: dict[str, PendingTool] | None = None  # all of this gap's, those that were told to have ended too
    gap_started_at: float | None = None
    turn_done: bool = False  # its last reply asked for no tool
    returns_at: float | None = None  # announced by the client
    last_seen_at: float = 0.0
    ended: bool = False

    # where its KV probably is
    home: EngineId | None = None
    home_tokens: int = 0
    home_clock: int = 0  # the home engine's count of written tokens when the program last touched its KV
    told_by: EngineId | None = None  # the engine whose KV events say how much of it is there
    told_tokens: int = 0

    # forecasts
    survival: Any = None  # of the present gap, once it was asked for: `board.gap`
    steps_left_told: float | None = None  # by the client, counted down
    steps_left_said: tuple[int, float] | None = None  # by a forecast, after so many steps
    teaches: bool = True  # what its present gap and the step before it show is learned from: `share`

    # the policy's own record
    own: Any = None

    @property
    def idle(self) -> bool:
        """In a gap: nothing of it waits or runs."""
        return not self.open_steps

    def runs_on(self, engine: EngineId) -> bool:
        """Is a step of it there?"""
        return any(step.engine == engine for step in self.open_steps.values())

    def begins_with(self, first: Segment, prefix: tuple[Segment, ...], *, undivided: bool) -> None:
        """Its prompts' first piece is `first` now, and these leading segments may be shared. If they begin otherwise
        than before, what it left is of no use, unless it was found all the same when they last did.

        `undivided`: all of the prompt is one piece, which may be what it was before and more. Then it is of use until
        nothing is found.
        """
        finds = self.carries and (self.moved or undivided)
        self.undivided = undivided
        self.moved = self.begins not in (None, first.hash)
        self.begins = first.hash
        if self.moved and not finds:
            self.home_tokens = 0
            self.told_by = None
        if prefix != self.prefix:
            self.prefix = prefix
            self.shared_tokens = sum(s.tokens for s in prefix)

    def learns_what_it_carries(self, step: Step) -> None:
        """A step of it is done: was there anything in its prompt that only the program itself could have left?

        A pipeline of fixed roles hands over no prefix. Where the prompt begins with other segments than the one before,
        only an engine that found more than these says that it does.
        """
        if not self.moved:
            self.carries = True
            return
        found = 0 if step.cached_tokens is None else step.cached_tokens - self.shared_tokens
        few = FOUND_SHARE * (step.prompt_tokens - self.shared_tokens)
        if self.undivided and found <= few and step.expected_cached <= few:
            return  # no more was expected: what it left is evicted
        self.carries = found > few

    def compacted(self) -> None:
        """Its next prompt shares only the leading segments with what it left anywhere."""
        self.home_tokens = self.shared_tokens
        self.told_by = None

    def own_tokens(self) -> int:
        """KV tokens that it needs beyond those that it may share."""
        return self.footprint(0) - self.shared_tokens

    def footprint(self, margin_tokens: int) -> int:
        """KV tokens it needs: its context while idle; while steps are open, theirs with the forecast output.

        Parallel steps share the program's leading segments.
        """
        if not self.open_steps:
            return self.context_tokens + margin_tokens
        total, beside = 0, True
        for step in self.open_steps.values():
            total += step.prompt_tokens + int(step.output_tokens)
            beside = beside and step.relation == "auxiliary"
        if beside:  # what it left when its gap began is still there
            return self.context_tokens + total + margin_tokens
        spare = len(self.open_steps) - 1
        if spare:
            total -= spare * min(self.shared_tokens, total // (spare + 1))
        return (total if total > 0 else 0) + margin_tokens
