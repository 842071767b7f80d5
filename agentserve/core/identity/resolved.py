"""What the resolver answers with.

Rule: values only.
"""

from __future__ import annotations

import msgspec

from agentserve.core.events import Relation
from agentserve.core.identity.evidence import ToolUse
from agentserve.core.identity.naming import CallClass
from agentserve.core.ids import ProgramId


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Which program a call is of, and what it is to it.

    `relation`: `new` and `subagent` begin a program; `continues` is its next step, or one more conversation in it;
    `fork` goes back to an earlier point or runs beside another step; `retry` is the same step once more;
    `auxiliary` is of the program but no step of it (a title, a prewarm); `compaction` is the first step after the
    context was cut down, so that what was kept of the old one is worthless.
    """

    program_id: ProgramId
    name: str  # the program's name as its tenant knows it
    tenant: str
    parent_id: ProgramId | None = None
    step_index: int = 0
    turn: int = 0
    window: int = 0
    source: str
    confidence: float
    role_fingerprint: int = 0
    relation: Relation
    returns: tuple[str, ...] = ()  # ids of the tool calls whose results came with this call
    human: bool = False  # a person wrote since the last step
    call_class: CallClass | None = None  # what the client itself calls it
    tool_seconds: tuple[tuple[str, float], ...] = ()  # durations that the client measured
    final: bool = False  # the client says that this is the last
    ticket: int = 0  # hand this value back with the reply

    @property
    def begins(self) -> bool:
        """Is this the program's first call?"""
        return self.relation in ("new", "subagent")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply means for its program."""

    tools: tuple[
        ToolUse, ...
    ] = ()  # calls now open; for an agent whose tools speak as the user, the one named `text`
    turn_done: bool = False  # nothing is asked for: a person, or nobody, is next; not the program's end
    final: bool = False  # a terminal tool was called, or the client said so beforehand
    ended: bool = False  # final, or a sub-agent that asks for nothing more; a later call resumes it


TEXT_TOOL = "text"  # id and name of the one tool of an agent whose tools speak through users' messages


def scoped(tenant: str, name: str) -> ProgramId:
    """The id of a tenant's program: unique over tenants, whatever the tenant's clients choose to call theirs."""
    return ProgramId(f"{tenant.replace('%', '%25').replace('/', '%2F')}/{name}")


def unscoped(program_id: str) -> tuple[str, str]:
    """The tenant and the name that `scoped` was given."""
    tenant, _, name = program_id.partition("/")
    return tenant.replace("%2F", "/").replace("%25", "%"), name
