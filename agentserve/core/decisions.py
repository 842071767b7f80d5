"""What is to be done, told by the scheduler. Imperatives, immutable, serialisable.

Rule: every decision carries its `cause` (the event that led to it) and a `reason` that an operator can read.
`reason` is one of a small set of words, so that it can label a metric; `detail` may hold the figures.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agentserve.core.ids import EngineId, ProgramId, StepId

PinMode = Literal["native", "reserved", "touched"]


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The root of all decisions."""

    cause: str = ""
    reason: str = ""
    detail: str = ""


class Dispatch(Decision, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Send the step to this engine now. `priority`: smaller goes sooner; adapters turn the polarity."""

    step: StepId
    engine: EngineId
    priority: int = 0
    expected_cached_tokens: int = 0


class Wait(Decision, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Hold the step; `expected_s` is the forecast of how long."""

    step: StepId
    expected_s: float | None = None


class Reject(Decision, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Refuse the step."""

    step: StepId
    status: int
    retry_after_s: float


class Abort(Decision, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Close the step upstream."""

    step: StepId
    engine: EngineId


class Pin(Decision, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Keep this much of the program's KV on this engine until then."""

    program: ProgramId
    engine: EngineId
    tokens: int
    until: float
    mode: PinMode = "reserved"


class Unpin(Decision, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Let the program's KV on this engine go."""

    program: ProgramId
    engine: EngineId


class Warm(Decision, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Bring the program's prefix into this engine (or refresh it there) by `due`."""

    program: ProgramId
    engine: EngineId
    tokens: int
    due: float
    refresh: bool = False  # a touch: the prefix is there, keep it from growing old


AnyDecision = Dispatch | Wait | Reject | Abort | Pin | Unpin | Warm
