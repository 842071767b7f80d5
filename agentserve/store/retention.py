"""Letting go of what is old, or too much, in transactions so short that nobody waits for them.

Rule: one small delete at a time, between two batches of the journal. By size, detail goes before records: first the
journal's pieces, then decisions, warms, pins, tool calls, steps, and programs last. Keys, tenants, workflows, forecasts
and accounts are never swept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Table, and_, delete, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from agentserve.config import StoreSettings
from agentserve.errors import StoreError
from agentserve.store import schema
from agentserve.store.database import Database

log = logging.getLogger("agentserve.store")

SWEEP_EVERY_S = 30.0
SIZE_EVERY_S = 600.0  # PostgreSQL counts rows by reading them all
CHUNK_ROWS = 500
CHUNKS_OF_A_TICK_MAX = 4
CHAIN_DAYS_MAX = 2.0  # no client comes back to a program after that
SIZE_SLACK = 0.9  # sweep down to this share of the limit, so as not to sweep all the time
TUPLE_OVERHEAD = 1.6  # PostgreSQL: row headers, page slack and indexes, over the bytes of the columns


# What is swept, what goes first first, and the column that tells age.
SWEPT: tuple[tuple[Table, str], ...] = (
    (schema.table(schema.Batch), "written_at"),
    (schema.table(schema.Decision), "at"),
    (schema.table(schema.Prompt), "at"),
    (schema.table(schema.Note), "at"),
    (schema.table(schema.Warm), "made_at"),
    (schema.table(schema.Pin), "made_at"),
    (schema.table(schema.ToolCall), "started_at"),
    (schema.table(schema.Step), "arrived_at"),
    (schema.table(schema.Program), "last_at"),
)


class Sweeper:
    """Called between batches; does a little each time."""

    def __init__(
        self, database: Database, settings: StoreSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._next_at = 0.0
        self._size_at = 0.0
        self.swept = 0
        self.size_bytes = 0

    async def tick(self) -> None:
        """A few small deletes, if it is time."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + SWEEP_EVERY_S
        try:
            more = await self.sweep()
        except (SQLAlchemyError, StoreError, OSError, TimeoutError) as error:
            log.warning("old rows could not be swept: %s", str(error).splitlines()[0][:200])
            return
        if more:
            self._next_at = now + 0.2

    async def sweep(self, chunks: int = CHUNKS_OF_A_TICK_MAX) -> bool:
        """At most so many deletes; whether there is more to do."""
        if (
            self._database.embedded or not self.size_bytes
        ):  # what is old may take long: the size is told meanwhile
            self.size_bytes = await self.used_bytes()
        now = self._clock()
        oldest = now - self._settings.retention_days * 86_400.0
        ages = [(table, table.c[column], oldest) for table, column in SWEPT]
        chains = schema.table(schema.Chain)
        ages.append((chains, chains.c.at, max(oldest, now - CHAIN_DAYS_MAX * 86_400.0)))
        for table, column, before in ages:
            while await self._delete(table, column, before):
                chunks -= 1
                if chunks <= 0:
                    return True
        return await self._shrink(chunks)

    async def _shrink(self, chunks: int) -> bool:
        """Down to the size that is allowed."""
        if time.monotonic() < self._size_at:
            return False
        limit = self._settings.size_mb_max * 1_000_000
        self.size_bytes = await self.used_bytes()
        if self.size_bytes <= limit:
            if not self._database.embedded:
                self._size_at = time.monotonic() + SIZE_EVERY_S
            await self._give_back()
            return False
        while chunks > 0:
            for table, column in SWEPT:
                if await self._delete(table, table.c[column], None):
                    break
            else:
                return False
            chunks -= 1
            self.size_bytes = await self.used_bytes()
            if self.size_bytes <= limit * SIZE_SLACK:
                await self._give_back()
                return False
        return True

    async def _delete(self, table: Table, column: Column[Any], before: float | None) -> int:
        """The oldest rows of a table, those before a time or just the oldest; how many."""
        keys = list(table.primary_key.columns)
        oldest = select(*keys).order_by(column).limit(CHUNK_ROWS)
        if before is not None:
            oldest = oldest.where(column < before)
        async with self._database.begin() as connection:
            rows = (await connection.execute(oldest)).all()
            if not rows:
                return 0
            if len(keys) == 1:
                await connection.execute(delete(table).where(keys[0].in_([row[0] for row in rows])))
            else:
                for row in rows:
                    same = and_(*[key == value for key, value in zip(keys, row, strict=True)])
                    await connection.execute(delete(table).where(same))
        self.swept += len(rows)
        return len(rows)

    async def used_bytes(self) -> int:
        """How much of the database's room holds rows. PostgreSQL keeps freed room, so there it is estimated."""
        if self._database.embedded:
            return await self._database.size_bytes()
        total = 0.0
        async with self._database.reading() as connection:
            for table, column in SWEPT:
                rows = int(await connection.scalar(select(func.count()).select_from(table)) or 0)
                if rows:
                    newest = f"SELECT * FROM {table.name} ORDER BY {column} DESC LIMIT 100"
                    width = await connection.scalar(
                        text(f"SELECT avg(pg_column_size(t.*)) FROM ({newest}) t")
                    )
                    total += rows * (float(width or 0.0) + 28.0) * TUPLE_OVERHEAD
        return int(total)

    async def _give_back(self) -> None:
        """Hand free pages back to the file system, a few at a time; PostgreSQL's autovacuum does it by itself."""
        if self._database.embedded and self.swept:
            async with self._database.engine.connect() as connection:
                # one page a step: only a script is stepped to its end
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await driver.executescript("PRAGMA incremental_vacuum(1000)")
