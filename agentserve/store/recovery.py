"""What a gateway takes up again when it starts: forecasts, graphs, accounts, and the programs that are still open.

Rule: it only reads. A blob that its owner cannot read any more is the owner's to skip; the worst that follows is that
something is learned anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from sqlalchemy import select

from agentserve.core.decisions import AnyDecision
from agentserve.core.events import AnyEvent
from agentserve.store import schema
from agentserve.store.database import Database

CHAINS_MAX = 200_000
GRAPHS_MAX = 20_000


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
    oldest_first = recent[::-1]
    return Recovered(
        forecasts=blobs,
        graphs=pictures,
        accounts=services,
        chains=tuple(bytes(row.body) for row in oldest_first),
        open_programs=tuple(row.program for row in oldest_first),
    )


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
