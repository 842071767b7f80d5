"""Responses and conversations that clients refer to later, at rest: written behind, read when memory lacks them.

Rule: they hold prompts, so the gateway hands them over only where the operator says how long they may be kept
(`store.responses_days`), and where the operator does not say so any more they go. What only says that a background
response runs is kept for a day all the same. Nobody waits for a write: what is to be written waits here, bounded in
bytes, and the oldest is dropped and counted when the database is away for too long. A deletion is a deletion at rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sqlalchemy import Select, bindparam, delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from agentserve.config import StoreSettings
from agentserve.errors import Overloaded, StoreError
from agentserve.ports import RUNNING
from agentserve.store import schema
from agentserve.store.database import Database

log = logging.getLogger("agentserve.store")

WAITING_BYTES_MAX = 64 * 1024 * 1024
RECORD_BYTES_MAX = 8 * 1024 * 1024  # a larger one lives in memory only
BATCH_MAX = 100
EVERY_S = 0.25
RETRY_S_MAX = 5.0
READ_S_MAX = 5.0
STOP_S = 5.0
SWEEP_EVERY_S = 60.0
SWEEP_ROWS = 500
DAY_S = 86_400.0
RUNNING_DAYS = 1.0

_table = schema.table(schema.StoredResponse)
_FORGET = delete(_table).where(_table.c.tenant == bindparam("its_tenant"), _table.c.id == bindparam("its_id"))
_SWEEP = _FORGET.where(_table.c.at == bindparam("its_at"))  # and not when it was written anew meanwhile
Key = tuple[str, str]  # tenant, id


class Archive:
    """Implements `ports.Archive` on one database; lives on the gateway's loop."""

    def __init__(
        self, database: Database, settings: StoreSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._waiting: OrderedDict[Key, bytes | None] = OrderedDict()  # None: to be deleted
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._swept_at = time.monotonic()
        self.lost = 0  # records that were not kept: too large, or too many while the database was away
        self.up = True

    # -- on the requests' path

    def keep(self, tenant: str, record: str, body: bytes) -> None:
        """Keep this, in place of what was kept under that id."""
        if len(body) > RECORD_BYTES_MAX:
            self.lost += 1
            self.forget(tenant, record)  # an older state of it would be wrong
            return
        self._wait(tenant, record, body)
        while self._bytes > WAITING_BYTES_MAX:
            oldest = next(key for key, waiting in self._waiting.items() if waiting is not None)
            self._bytes -= len(self._waiting.pop(oldest) or b"")
            self.lost += 1

    def forget(self, tenant: str, record: str) -> None:
        """Delete it."""
        self._wait(tenant, record, None)

    async def load(self, tenant: str, record: str) -> bytes | None:
        """What was kept, or None; `Overloaded` when the database does not answer."""
        key = (tenant, record)
        if key in self._waiting:
            return self._waiting[key]
        try:
            async with asyncio.timeout(READ_S_MAX), self._database.reading() as connection:
                query = select(_table.c.body).where(
                    _table.c.tenant == tenant, _table.c.id == record, _table.c.at >= self._oldest()
                )
                found = await connection.scalar(query)
        except (StoreError, TimeoutError) as error:
            raise Overloaded(
                "stored responses cannot be read now", retry_after_s=RETRY_S_MAX, status=503
            ) from error
        return bytes(found) if found is not None else None

    @property
    def waiting(self) -> int:
        """How many wait to be written."""
        return len(self._waiting)

    def _wait(self, tenant: str, record: str, body: bytes | None) -> None:
        key = (tenant, record)
        self._bytes += len(body or b"") - len(self._waiting.pop(key, None) or b"")
        self._waiting[key] = body

    def _oldest(self) -> float:
        return self._clock() - (self._settings.responses_days or RUNNING_DAYS) * DAY_S

    # -- its life

    def start(self) -> None:
        """Write from now on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write_on())

    async def stop(self) -> None:
        """Write what waits, for a few seconds at most, and end."""
        if self._task is None:
            return
        self._stopping.set()
        await asyncio.wait([self._task], timeout=STOP_S)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        if self._waiting:
            log.error("%d stored responses could not be written before the end", len(self._waiting))

    async def _write_on(self) -> None:
        wait_s = EVERY_S
        while True:
            try:
                while self._waiting:
                    await self._write()
                if time.monotonic() >= self._swept_at + SWEEP_EVERY_S:
                    await self.sweep()
            except (SQLAlchemyError, StoreError, OSError, TimeoutError) as error:
                if self.up:
                    log.error("stored responses wait to be written: %s", str(error).splitlines()[0][:200])
                self.up, wait_s = False, min(wait_s * 2, RETRY_S_MAX)
            else:
                self.up, wait_s = True, EVERY_S
            if self._stopping.is_set() and (not self._waiting or not self.up):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopping.wait()

    async def _write(self) -> None:
        """A few of those that wait, in one transaction; they wait on until it is committed."""
        batch = [(key, body) for key, body in self._waiting.items()][:BATCH_MAX]
        now = self._clock()
        rows = [
            {"tenant": key[0], "id": key[1], "at": now, "size": len(body), "body": body}
            for key, body in batch
            if body is not None
        ]
        gone = [{"its_tenant": key[0], "its_id": key[1]} for key, body in batch if body is None]
        insert = self._database.insert(_table)
        new = {name: insert.excluded[name] for name in ("at", "size", "body")}
        async with self._database.begin() as connection:
            if rows:
                await connection.execute(
                    insert.on_conflict_do_update(index_elements=["tenant", "id"], set_=new), rows
                )
            if gone:
                await connection.execute(_FORGET, gone)
        for key, body in batch:
            if key in self._waiting and self._waiting[key] is body:  # else it changed meanwhile
                del self._waiting[key]
                self._bytes -= len(body or b"")

    async def sweep(self) -> None:
        """Let go of what is too old, then of the oldest while all of it is too much; a short transaction at a time."""
        columns = (_table.c.tenant, _table.c.id, _table.c.at, _table.c.size)
        oldest = select(*columns).order_by(_table.c.at).limit(SWEEP_ROWS)
        while await self._delete(oldest.where(_table.c.at < self._oldest()), None):
            pass
        if self._settings.responses_days <= 0:  # what was kept while it was allowed
            while await self._delete(oldest.where(_table.c.id.not_like(f"{RUNNING}%")), None):
                pass
        limit = self._settings.responses_mb_max * 1_000_000
        while (excess := await self.used_bytes() - limit) > 0:
            await self._delete(oldest, excess)
        self._swept_at = time.monotonic()

    async def used_bytes(self) -> int:
        """The size of all that is kept."""
        async with self._database.reading() as connection:
            return int(await connection.scalar(select(func.sum(_table.c.size))) or 0)

    async def _delete(self, chosen: Select[Any], size: int | None) -> int:
        """The chosen rows, or the first of them until so many bytes are gone; how many.

        They are looked for before the lock is taken, which the journal may be waiting for: each step of a transaction
        is a turn of a loop that may be busy.
        """
        async with self._database.reading() as connection:
            found = (await connection.execute(chosen)).all()
        gone = []
        for tenant, record, at, bytes_ in found:
            if size is not None and size <= 0:
                break
            size = None if size is None else size - bytes_
            gone.append({"its_tenant": tenant, "its_id": record, "its_at": at})
        if gone:
            async with self._database.begin() as connection:
                await connection.execute(_SWEEP, gone)
        return len(gone)
