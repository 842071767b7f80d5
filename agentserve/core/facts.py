"""What is known of programs, tool calls, pins and warms once it is known: the vocabulary of `story`.

Rule: values only, immutable and serialisable. Times are those of the events that they were told from.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agentserve.core.decisions import PinMode
from agentserve.core.events import ToolKind

PinEnd = Literal["hit", "expired", "revoked", "refused", "moved", "ended", "lost"]
WarmEnd = Literal["used", "late", "refused", "unused", "ended"]


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The root of all facts."""

    program: str
    tenant: str = ""
    workflow: str | None = None


class ProgramOpened(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A program was heard of for the first time."""

    at: float
    parent: str | None = None


class ProgramClosed(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A program is over. `seconds` leaves out the waits for a person; `slowdown` is against never having queued.

    `queue_s` is by how much its steps' waits delayed it: of steps beside one another, not the sum.
    """

    at: float  # when its last step ended
    reason: str
    opened_at: float
    parent: str | None = None
    steps: int = 0
    failed_steps: int = 0
    seconds: float = 0.0
    queue_s: float = 0.0
    human_s: float = 0.0
    tool_s: float = 0.0
    slowdown: float = 1.0


class StepOver(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A step finished. `refilled_tokens`: context that was computed before and had to be computed again."""

    step: str
    at: float
    engine: str = ""
    refilled_tokens: int = 0
    saved_s: float = 0.0  # prefill that the engine's cache spared


class ToolCallOver(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A tool call's result came back, or the program went on without it (`censored`: it took at least this long).

    `measured` when the client timed it; else the seconds are the gap that a server sees.
    """

    id: str
    name: str
    step: str  # that asked for it
    kind: ToolKind = "tool"
    argument_class: str = ""
    exact_hash: int | None = None
    pipes: bool = False
    chain: int = 1
    timeout_s: float | None = None
    background: bool = False
    started_at: float
    seconds: float
    measured: bool = False
    censored: bool = False
    ok: bool = True
    beside: int = 0  # other calls that were out at the same time


class PinMade(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """KV is kept for a program in a gap."""

    engine: str
    at: float
    tokens: int
    until: float | None = None
    mode: PinMode = "reserved"
    reason: str = ""


class PinOver(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """What became of a pin. `held_s` is how long it stood; what a hit spared is told later (`PinPaid`).

    `announced` is False where no `PinMade` came before: the KV was kept by leaving it its room.
    """

    engine: str
    made_at: float
    at: float
    tokens: int
    mode: PinMode = "reserved"
    end: PinEnd
    reason: str = ""
    held_s: float = 0.0
    saved_s: float = 0.0
    announced: bool = True


class PinPaid(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """What a pin that was hit spared, once the engine has said what it found: the pin anew, with its `saved_s`."""

    over: PinOver


class WarmOver(Fact, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """What became of a warm: `used` when the program came back to that engine after it was done."""

    engine: str
    made_at: float
    at: float
    tokens: int
    due: float
    refresh: bool = False
    end: WarmEnd
    cached_tokens: int | None = None
    reason: str = ""


AnyFact = ProgramOpened | ProgramClosed | StepOver | ToolCallOver | PinMade | PinOver | PinPaid | WarmOver
