"""What has happened, told to the scheduler. Past facts, immutable, serialisable.

Rule: an event holds numbers, ids and hashes, never text. Prompts enter as token counts and prefix hashes.
The live journal is a list of `(event, now)`; feeding it to a fresh scheduler gives the same decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId

PriorityClass = Literal["interactive", "standard", "batch"]
ToolKind = Literal["tool", "human", "permission", "subagent"]
Relation = Literal["new", "continues", "retry", "fork", "subagent", "auxiliary", "compaction"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The root of all events."""


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """A leading piece of a prompt: the chain hash up to its end, and the tokens it adds."""

    hash: int
    tokens: int


class PendingTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call that a step asked for: what the forecaster needs to know about it, no arguments."""

    id: str
    name: str
    argument_class: str = ""
    exact_hash: int | None = None
    pipes: bool = False
    chain: int = 1
    timeout_s: float | None = None
    background: bool = False
    kind: ToolKind = "tool"


class StepArrived(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A client sent an LLM call that belongs to a program."""

    step: StepId
    program: ProgramId
    tenant: TenantId
    model: str = ""
    prompt_tokens: int
    output_tokens_max: int | None = None
    # Leading segments that other programs may share (system prompt, tools, first message), in order;
    # what follows them is the program's own.
    prefix: tuple[Segment, ...] = ()
    # All of the prompt is one such segment, which may be the program's own as well: its last prompt and more.
    undivided: bool = False
    workflow: WorkflowId | None = None
    role: int = 0  # fingerprint of system prompt and tools
    parent: ProgramId | None = None
    relation: Relation = "continues"
    node: str | None = None  # declared step name
    priority: PriorityClass | None = None
    deadline_s: float | None = None  # seconds from the program's start
    tools_offered: int = 0
    # Tool calls whose results came back with this step, by the ids of their `PendingTool`.
    returned: tuple[str, ...] = ()
    # What clients measured of the tools that just ran, as (name, seconds) in the order of their results.
    measured: tuple[tuple[str, float], ...] = ()
    human: bool = False  # a person wrote since the last step
    streamed: bool = True  # False: the reply comes whole, so that nobody sees where prefill ends

    def took(self, calls: Mapping[str, PendingTool]) -> dict[str, float]:
        """Seconds that the client measured of these calls, by their ids: each measure is of one call of its name, the
        first of the result that came first."""
        left = list(self.measured)
        found: dict[str, float] = {}
        if not left:
            return found
        ordered = {call_id: calls[call_id] for call_id in self.returned if call_id in calls}
        for call in (ordered | dict(calls)).values():
            at = next((k for k, (name, _) in enumerate(left) if name == call.name), None)
            if at is not None:
                found[call.id] = left.pop(at)[1]
        return found


class StepStarted(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The first byte of the reply came."""

    step: StepId


class StepFinished(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The reply is whole. Counts are the engine's own where it gave them."""

    step: StepId
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    tools: tuple[PendingTool, ...] = ()
    turn_done: bool = False  # no tool call: a person, or nobody, is next
    final: bool = False  # a terminal tool, or the client said that it was the last


class StepFailed(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The engine failed the step. `retryable`: no byte had reached the client yet."""

    step: StepId
    reason: str
    retryable: bool = False


class ClientGone(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The client closed its connection before the reply was whole."""

    step: StepId


class ToolStarted(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Announced by the SDK: a tool runs now."""

    program: ProgramId
    tool: PendingTool
    expected_s: float | None = None


class ToolEnded(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Announced by the SDK: a tool ended, the program's next step is near."""

    program: ProgramId
    tool_id: str
    duration_s: float
    ok: bool = True


class ProgramDeclared(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A client told us of a program before or beside its calls."""

    program: ProgramId
    tenant: TenantId
    workflow: WorkflowId | None = None
    parent: ProgramId | None = None
    priority: PriorityClass | None = None
    deadline_s: float | None = None
    steps_expected: float | None = None


class ProgramEnded(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The program is over: told so, by a terminal tool, or idle for too long."""

    program: ProgramId
    reason: str = "told"


class HintGiven(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The program says when its next step will come, or how much is left."""

    program: ProgramId
    returns_in_s: float | None = None
    steps_left: float | None = None
    compacted: bool = False


class EngineReported(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An engine's own figures, from a probe. Absent fields are unknown."""

    engine: EngineId
    kv_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    kv_used_share: float | None = None
    preemptions: int | None = None
    evicted_tokens: int | None = None
    seqs_max: int | None = None
    block_tokens: int | None = None
    models: tuple[str, ...] = ()
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    draining: bool | None = None
    pins_natively: bool | None = None


REMOVED = "removed"  # the reason when an engine was taken out on purpose


class EngineLost(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An engine does not answer, or was taken out. Its KV is gone."""

    engine: EngineId
    reason: str = ""


class EngineBack(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An engine answers (again), with an empty cache."""

    engine: EngineId


class KvStored(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The engine says that it now holds this much of a program's prefix."""

    engine: EngineId
    program: ProgramId
    tokens: int


class KvRemoved(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The engine says that of a program's prefix only this much is left."""

    engine: EngineId
    program: ProgramId
    tokens_left: int


class DecisionDone(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """What became of a pin, unpin or warm that an adapter carried out."""

    decision: str
    program: ProgramId
    engine: EngineId
    outcome: Literal["accepted", "clipped", "refused", "unknown"]
    detail: str = ""
    prompt_tokens: int | None = None  # of what a warm sent
    cached_tokens: int | None = None  # of these, what was there


class TimerFired(Event, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The time that `next_deadline()` named has come."""


AnyEvent = (
    StepArrived
    | StepStarted
    | StepFinished
    | StepFailed
    | ClientGone
    | ToolStarted
    | ToolEnded
    | ProgramDeclared
    | ProgramEnded
    | HintGiven
    | EngineReported
    | EngineLost
    | EngineBack
    | KvStored
    | KvRemoved
    | DecisionDone
    | TimerFired
)
