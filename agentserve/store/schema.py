"""The tables, typed.

Rule: times are epoch seconds, durations seconds, hashes hexadecimal text. A table that is written behind has a key
that makes writing the same row twice harmless. Changing a table means adding a migration; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Serial = BigInteger().with_variant(Integer, "sqlite")

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Row(DeclarativeBase):
    """The root of all tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - declared so by SQLAlchemy
        float: Double,
        int: BigInteger,
        str: Text,
        bytes: LargeBinary,
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
    }


# -- who


class Tenant(Row):
    """Who pays."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    first_seen_at: Mapped[float]
    last_seen_at: Mapped[float]
    programs: Mapped[int] = mapped_column(default=0)
    steps: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    cached_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)


class ApiKey(Row):
    """A key, as its digest. `id` is the public part."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    scopes: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float]
    changed_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class Account(Row):
    """What a tenant has had, weighted: the fairness account."""

    __tablename__ = "accounts"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    service: Mapped[float]
    at: Mapped[float]


# -- what kinds of programs


class Workflow(Row):
    """A kind of program, and how often it was seen."""

    __tablename__ = "workflows"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    first_seen_at: Mapped[float]
    last_seen_at: Mapped[float]
    programs: Mapped[int] = mapped_column(default=0)
    steps: Mapped[int] = mapped_column(default=0)


class Graph(Row):
    """A workflow's step graph: as declared (JSON) or as learned (the learner's own bytes)."""

    __tablename__ = "graphs"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # declared | learned
    body: Mapped[bytes]
    at: Mapped[float]


class Forecast(Row):
    """A forecaster's state, in its own bytes."""

    __tablename__ = "forecasts"

    name: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[bytes]
    at: Mapped[float]


# -- what ran


class Program(Row):
    """One run of an agent. Sums grow with every batch."""

    __tablename__ = "programs"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))  # live | ended
    opened_at: Mapped[float]
    last_at: Mapped[float]
    ended_at: Mapped[float | None]
    end_reason: Mapped[str | None]
    parent: Mapped[str | None]
    workflow: Mapped[str | None]
    session: Mapped[str | None]
    model: Mapped[str | None]
    identity_source: Mapped[str | None]
    steps: Mapped[int] = mapped_column(default=0)
    failed_steps: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    cached_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)
    engine_s: Mapped[float] = mapped_column(default=0.0)
    queue_s: Mapped[float] = mapped_column(default=0.0)
    # known once it is over
    seconds: Mapped[float | None]
    human_s: Mapped[float | None]
    tool_s: Mapped[float | None]
    slowdown: Mapped[float | None]

    __table_args__ = (
        Index(None, "last_at"),
        Index(None, "tenant", "last_at"),
        Index(None, "state", "last_at"),
        Index(None, "parent"),
    )


class Chain(Row):
    """A program's identity, in the resolver's own bytes, so that its next call is known after a restart."""

    __tablename__ = "chains"

    program: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[bytes]
    at: Mapped[float] = mapped_column(index=True)


class Step(Row):
    """One LLM call."""

    __tablename__ = "steps"

    id: Mapped[str] = mapped_column(primary_key=True)
    program: Mapped[str]
    tenant: Mapped[str]
    number: Mapped[int]  # its place in the program
    protocol: Mapped[str]
    model: Mapped[str]
    engine: Mapped[str | None]
    status: Mapped[int]
    outcome: Mapped[str]
    error: Mapped[str]
    arrived_at: Mapped[float]
    dispatched_at: Mapped[float | None]
    first_byte_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    queue_s: Mapped[float]
    overhead_s: Mapped[float]
    node: Mapped[str | None]
    role: Mapped[str]  # hexadecimal
    relation: Mapped[str]
    identity_source: Mapped[str]
    identity_confidence: Mapped[float]
    streamed: Mapped[bool] = mapped_column(Boolean)
    prompt_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cached_tokens: Mapped[int | None]
    expected_cached_tokens: Mapped[int]
    finish_reason: Mapped[str]
    tools: Mapped[list[str]]
    reason: Mapped[str]
    detail: Mapped[str]
    gap_s: Mapped[float | None]
    trace_id: Mapped[str | None] = mapped_column(String(32))

    __table_args__ = (Index(None, "program", "arrived_at"), Index(None, "arrived_at"))


class ToolCall(Row):
    """What filled a gap."""

    __tablename__ = "tool_calls"

    serial: Mapped[int] = mapped_column(Serial, primary_key=True)
    program: Mapped[str] = mapped_column(index=True)
    tenant: Mapped[str]
    step: Mapped[str]
    call: Mapped[str]
    name: Mapped[str]
    kind: Mapped[str]
    argument_class: Mapped[str]
    exact_hash: Mapped[str | None]
    pipes: Mapped[bool] = mapped_column(Boolean)
    chain: Mapped[int]
    timeout_s: Mapped[float | None]
    background: Mapped[bool] = mapped_column(Boolean)
    started_at: Mapped[float] = mapped_column(index=True)
    seconds: Mapped[float]
    measured: Mapped[bool] = mapped_column(Boolean)
    censored: Mapped[bool] = mapped_column(Boolean)
    ok: Mapped[bool] = mapped_column(Boolean)
    beside: Mapped[int]


class Pin(Row):
    """KV that was kept for a program, and what came of it."""

    __tablename__ = "pins"

    program: Mapped[str] = mapped_column(primary_key=True)
    engine: Mapped[str] = mapped_column(primary_key=True)
    made_at: Mapped[float] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    tokens: Mapped[int]
    mode: Mapped[str]
    until: Mapped[float | None]
    ended_at: Mapped[float | None]
    outcome: Mapped[str]  # open, or how it ended
    reason: Mapped[str]
    held_s: Mapped[float]
    saved_s: Mapped[float]

    __table_args__ = (Index(None, "made_at"), Index(None, "outcome", "made_at"))


class Warm(Row):
    """A prefix that was restored ahead of a return, and what came of it."""

    __tablename__ = "warms"

    program: Mapped[str] = mapped_column(primary_key=True)
    engine: Mapped[str] = mapped_column(primary_key=True)
    made_at: Mapped[float] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    tokens: Mapped[int]
    due: Mapped[float]
    refresh: Mapped[bool] = mapped_column(Boolean)
    ended_at: Mapped[float]
    outcome: Mapped[str]
    cached_tokens: Mapped[int | None]
    reason: Mapped[str]

    __table_args__ = (Index(None, "made_at"),)


class Decision(Row):
    """What the scheduler decided, and why."""

    __tablename__ = "decisions"

    serial: Mapped[int] = mapped_column(Serial, primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    program: Mapped[str | None] = mapped_column(index=True)
    step: Mapped[str | None]
    kind: Mapped[str]
    cause: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    engine: Mapped[str | None]
    tokens: Mapped[int | None]
    until: Mapped[float | None]


class Engine(Row):
    """An inference server as it was last seen."""

    __tablename__ = "engines"

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(16))  # up | lost | draining
    kind: Mapped[str | None]
    url: Mapped[str | None]
    models: Mapped[list[str] | None]
    kv_tokens: Mapped[int | None]
    running: Mapped[int | None]
    waiting: Mapped[int | None]
    kv_used_share: Mapped[float | None]
    seen_at: Mapped[float]
    reason: Mapped[str | None]


# -- what was said


class Batch(Row):
    """A piece of the journal: events with their times and decisions, in the core's own encoding.

    `(writer, number)` are contiguous for each run of a gateway, so that a hole can be seen; `dropped` counts the events
    that were lost before this piece because the database could not keep up.
    """

    __tablename__ = "batches"

    writer: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    written_at: Mapped[float] = mapped_column(index=True)
    first_at: Mapped[float | None]
    last_at: Mapped[float | None]
    events: Mapped[int]
    dropped: Mapped[int]
    body: Mapped[bytes]


class Prompt(Row):
    """What a step was asked; only where the operator wants prompts kept, cut and redacted."""

    __tablename__ = "prompts"

    step: Mapped[str] = mapped_column(primary_key=True)
    program: Mapped[str] = mapped_column(index=True)
    at: Mapped[float] = mapped_column(index=True)
    text: Mapped[str]
    cut_bytes: Mapped[int]


class StoredResponse(Row):
    """A response or conversation of `/v1/responses`, in the gateway's own bytes; only where they may be at rest."""

    __tablename__ = "responses"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    size: Mapped[int]
    body: Mapped[bytes]


class Note(Row):
    """Anything else that a part of the gateway wants kept, by kind and key."""

    __tablename__ = "notes"

    kind: Mapped[str] = mapped_column(String(50), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str | None]
    at: Mapped[float] = mapped_column(index=True)
    body: Mapped[bytes]


def table(row: type[Row]) -> Table:
    """The table of a class."""
    found = row.__table__
    assert isinstance(found, Table)
    return found
