"""A program's identity as bytes, to be kept while the process is not.

Rule: what is written is read back by the same version or not at all; a record that cannot be read is skipped, since
the worst that follows is that its program is taken for a new one. Hashes, names and counts only.
"""

from __future__ import annotations

import msgspec

from agentserve.core.identity.evidence import Trace
from agentserve.core.identity.known import Program, Tenant, Tip, Traced

RECORD_VERSION = 2


class TipRecord(msgspec.Struct, array_like=True):
    """One conversation."""

    role: int
    before: int
    after: int | None
    depth: int
    step: int
    settled: bool  # False: its call was in flight, so that the same call again is a retry
    main: bool
    heard: str | None = None


class TracedRecord(msgspec.Struct, array_like=True):
    """One text that another call may open with."""

    whole: int
    windows: tuple[int, ...]
    lines: tuple[int, ...]
    short: bool
    call_id: str | None
    spawns: bool
    paragraphs: int = 0


class ProgramRecord(msgspec.Struct, array_like=True):
    """One program."""

    version: int
    tenant: str
    name: str
    parent: str | None
    source: str
    person: int
    started_at: float
    last_at: float
    steps: int
    turn: int
    turn_name: str | None
    turn_done: bool
    window: int
    main_system: int
    main_tools: bool
    summarising: bool
    text_tools: bool
    rewrites: bool
    tips: list[TipRecord]
    marks: dict[int, bool]
    calls: dict[str, int]
    traced: list[TracedRecord]
    responses: dict[str, int]
    openers: list[int]
    roles: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ProgramRecord).decode


def to_bytes(program: Program) -> bytes:
    """The program, as it is now."""
    return _encode(
        ProgramRecord(
            version=RECORD_VERSION,
            tenant=program.tenant.id,
            name=program.name,
            parent=program.parent,
            source=program.source,
            person=program.person,
            started_at=program.started_at,
            last_at=program.last_at,
            steps=program.steps,
            turn=program.turn,
            turn_name=program.turn_name,
            turn_done=program.turn_done,
            window=program.window,
            main_system=program.main_system,
            main_tools=program.main_tools,
            summarising=program.summarising,
            text_tools=program.text_tools,
            rewrites=program.rewrites,
            tips=[_tip_record(program, tip) for tip in program.tips if not tip.auxiliary],
            marks=program.marks,
            calls=program.calls,
            traced=[
                TracedRecord(
                    whole=t.trace.whole,
                    windows=t.trace.windows,
                    lines=t.trace.lines,
                    paragraphs=t.trace.paragraphs,
                    short=t.trace.short,
                    call_id=t.call_id,
                    spawns=t.spawns,
                )
                for t in program.traced
            ],
            responses=program.responses,
            openers=list(program.openers),
            roles=list(program.roles),
        )
    )


def _tip_record(program: Program, tip: Tip) -> TipRecord:
    return TipRecord(
        role=tip.role,
        before=tip.before,
        after=tip.after,
        depth=tip.depth,
        step=tip.step,
        settled=tip.state == "ready",
        main=tip is program.main,
        heard=tip.heard,
    )


def from_bytes(record: bytes) -> ProgramRecord | None:
    """What was kept; None when it is of another version or damaged."""
    try:
        decoded = _decode(record)
    except msgspec.DecodeError:
        return None
    return decoded if decoded.version == RECORD_VERSION else None


def revive(home: Tenant, record: ProgramRecord) -> Program:
    """Put the program back into its tenant's indexes, every conversation waiting where it stood."""
    program = Program(home, record.name, parent=record.parent, source=record.source, now=record.started_at)
    for plain in (
        "person", "last_at", "steps", "turn", "turn_name", "turn_done", "window", "main_system", "main_tools",
        "summarising", "text_tools", "rewrites",
    ):  # fmt: skip
        setattr(program, plain, getattr(record, plain))
    home.add(program)
    for kept in record.tips:
        tip = home.new_tip(program, role=kept.role)
        tip.before, tip.after, tip.depth, tip.step = kept.before, kept.after, kept.depth, kept.step
        tip.state, tip.heard = "ready" if kept.settled else "failed", kept.heard
        home.make_ready(tip)
        if kept.main:
            program.main = tip
    for value, reply in record.marks.items():
        home.mark(program, value, reply=reply)
    for call_id, step in record.calls.items():
        home.open_call(program, call_id, step)
    for text in record.traced:
        trace = Trace(
            whole=text.whole,
            windows=text.windows,
            lines=text.lines,
            paragraphs=text.paragraphs,
            short=text.short,
        )
        home.trace(Traced(program, trace, call_id=text.call_id, spawns=text.spawns))
    for response_id, after in record.responses.items():
        home.respond(program, response_id, after)
    program.openers.update(dict.fromkeys(record.openers))
    program.roles.update(dict.fromkeys(record.roles))
    return program
