"""What a gateway takes up again when it starts: forecasts, graphs, accounts, and the programs that are still open.

Rule: it only reads. A blob that its owner cannot read any more is the owner's to skip; the worst that follows is that
something is learned anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Text, case, cast, func, not_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agentserve.core.decisions import AnyDecision
from agentserve.core.events import AnyEvent
from agentserve.core.lives import KeptLife
from agentserve.store import schema
from agentserve.store.database import Database

CHAINS_MAX = 200_000
GRAPHS_MAX = 20_000
LIVES_MAX = 5_000  # whose gaps are added up at the start; of more the time counts from then on


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGraph:
    """A workflow's graph: declared (JSON) or learned (the learner's bytes)."""

    tenant: str
    name: str
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """All of it; empty for a new database."""

    forecasts: dict[str, bytes] = field(default_factory=dict)
    graphs: tuple[KeptGraph, ...] = ()
    accounts: dict[str, float] = field(default_factory=dict)
    chains: tuple[bytes, ...] = ()  # least recently active first, as `Resolver.restore` wants them
    open_programs: tuple[str, ...] = ()
    lives: tuple[KeptLife, ...] = ()  # of programs that nobody said were over, least recently active first


async def recover(database: Database, *, now: float, idle_s: float) -> Recovered:
    """What there is. Programs that were not heard of for `idle_s` are over."""
    forecasts, graphs = schema.table(schema.Forecast), schema.table(schema.Graph)
    accounts, chains = schema.table(schema.Account), schema.table(schema.Chain)
    async with database.reading() as connection:
        kept = await connection.execute(select(forecasts.c.name, forecasts.c.body))
        blobs = {row.name: bytes(row.body) for row in kept}
        drawn = await connection.execute(select(graphs).order_by(graphs.c.at.desc()).limit(GRAPHS_MAX))
        pictures = tuple(
            KeptGraph(tenant=r.tenant, name=r.name, kind=r.kind, body=bytes(r.body)) for r in drawn
        )
        services = {
            row.tenant: float(row.service)
            for row in await connection.execute(select(accounts.c.tenant, accounts.c.service))
        }
        recent = (
            await connection.execute(
                select(chains.c.program, chains.c.body)
                .where(chains.c.at >= now - idle_s)
                .order_by(chains.c.at.desc())
                .limit(CHAINS_MAX)
            )
        ).all()
        lives = await _lives(connection)
    oldest_first = recent[::-1]
    return Recovered(
        forecasts=blobs,
        graphs=pictures,
        accounts=services,
        chains=tuple(bytes(row.body) for row in oldest_first),
        open_programs=tuple(row.program for row in oldest_first),
        lives=lives,
    )


async def _lives(connection: AsyncConnection) -> tuple[KeptLife, ...]:
    """Programs that are not over, with what filled the gaps between their steps: a tool was asked for, or nothing."""
    programs, steps = schema.table(schema.Program), schema.table(schema.Step)
    live = (
        select(programs)
        .where(programs.c.state == "live")
        .order_by(programs.c.last_at.desc())
        .limit(LIVES_MAX)
    )
    ids = live.with_only_columns(programs.c.id).subquery()
    asked = cast(steps.c.tools, Text) != "[]"
    gaps = (
        select(
            steps.c.program,
            steps.c.gap_s,
            asked.label("asked"),
            func.lag(asked)
            .over(partition_by=steps.c.program, order_by=steps.c.arrived_at)
            .label("asked_before"),
            func.lead(steps.c.id)
            .over(partition_by=steps.c.program, order_by=steps.c.arrived_at)
            .label("next"),
        )
        .where(
            steps.c.program.in_(select(ids.c.id)),
            steps.c.outcome == "finished",
            steps.c.relation != "auxiliary",
        )
        .subquery()
    )
    filled = await connection.execute(
        select(
            gaps.c.program,
            func.sum(case((gaps.c.asked_before, gaps.c.gap_s), else_=0.0)).label("tool_s"),
            func.sum(case((not_(gaps.c.asked_before), gaps.c.gap_s), else_=0.0)).label("human_s"),
            func.max(case((gaps.c.next.is_(None), case((gaps.c.asked, 0), else_=1)), else_=0)).label("done"),
        ).group_by(gaps.c.program)
    )
    parts = {row.program: row for row in filled}
    kept = []
    for row in (await connection.execute(live)).all()[::-1]:
        part = parts.get(row.id)
        kept.append(
            KeptLife(
                program=row.id,
                tenant=row.tenant,
                opened_at=row.opened_at,
                last_at=row.last_at,
                parent=row.parent,
                workflow=row.workflow,
                steps=row.steps,
                failed_steps=row.failed_steps,
                queue_s=row.queue_s,
                human_s=float(part.human_s or 0.0) if part is not None else 0.0,
                tool_s=float(part.tool_s or 0.0) if part is not None else 0.0,
                turn_done=part is not None and bool(part.done),
            )
        )
    return tuple(kept)


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of the journal as it was written."""

    writer: str
    number: int
    dropped: int
    told: list[tuple[AnyEvent, float, list[AnyDecision]]]


_decode = msgspec.msgpack.Decoder(list[tuple[AnyEvent, float, list[AnyDecision]]]).decode


async def journal_of(database: Database, *, writer: str | None = None) -> list[Piece]:
    """The journal, in order: by default that of the latest run. Feeding it to a fresh scheduler decides the same."""
    batches = schema.table(schema.Batch)
    async with database.reading() as connection:
        if writer is None:
            writer = await connection.scalar(
                select(batches.c.writer).order_by(batches.c.written_at.desc()).limit(1)
            )
        rows = await connection.execute(
            select(batches).where(batches.c.writer == writer).order_by(batches.c.number)
        )
        return [
            Piece(
                writer=row.writer,
                number=row.number,
                dropped=row.dropped,
                told=_decode(bytes(row.body)) if row.body else [],
            )
            for row in rows
        ]
