"""The store of one gateway, opened: its journal, its keys, what it recovered.

    store = await Store.open(settings)
    resolver.restore(store.recovered.chains); ...
    store.snapshots(chain_of=resolver.record, forecasts={"tools": tools.to_bytes}, accounts=...)
    ...
    await store.close()

Rule: a database that is away does not keep the gateway from starting; one that was not upgraded does, for waiting would
not help.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from agentserve.config import Settings
from agentserve.core.ids import ProgramId
from agentserve.errors import StoreError
from agentserve.store import migrations
from agentserve.store.archive import Archive
from agentserve.store.claim import Claim
from agentserve.store.database import Database
from agentserve.store.journal import STOP_TIMEOUT_S, WriteBehind
from agentserve.store.keys import StoredKeys
from agentserve.store.recovery import Recovered, recover
from agentserve.store.snapshots import Snapshots

log = logging.getLogger("agentserve.store")


class Store:
    """Everything that a gateway keeps."""

    def __init__(self, database: Database, journal: WriteBehind, keys: StoredKeys) -> None:
        self.database = database
        self.journal = journal
        self.keys = keys
        self.claim = Claim(database)
        self.recovered = Recovered()
        # opened without its database: that no key is known does not mean that there is none
        self.away = False
        self.archive: Archive | None = None  # of stored responses; once it is open there is one
        self._snapshots: Snapshots | None = None

    @classmethod
    async def open(
        cls,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        clock_offset_s: float = 0.0,
        redact: Callable[[str], str] | None = None,
    ) -> Store:
        """Connect, upgrade the embedded database, read back what was kept, start writing."""
        database = Database(settings.store.url)
        journal = WriteBehind(
            settings.store,
            clock=clock,
            clock_offset_s=clock_offset_s,
            redact=redact,
        )
        store = cls(database, journal, StoredKeys(database))
        try:
            await migrations.ready(database)
            store.recovered = await recover(database, now=clock(), idle_s=settings.scheduler.program_idle_s)
            await store.keys.refresh()
        except StoreError as error:
            if await database.answers():
                store.claim.release()
                await database.close()
                raise
            store.away = True
            log.critical("starting without the database, with no keys and nothing recovered: %s", error)
        journal.start()
        store.keys.start()
        store.archive = Archive(database, settings.store, clock=clock)
        store.archive.start()
        return store

    def snapshots(
        self,
        *,
        chain_of: Callable[[ProgramId], bytes | None] | None = None,
        forecasts: Mapping[str, Callable[[], bytes]] | None = None,
        accounts: Callable[[], Mapping[str, float]] | None = None,
        graphs: Callable[[], Mapping[tuple[str, str], bytes]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Snapshots:
        """From now on keep what these answer; see `Snapshots`."""
        snapshots = Snapshots(
            self.journal,
            chain_of=chain_of,
            forecasts=forecasts,
            accounts=accounts,
            graphs=graphs,
            clock=clock,
        )
        self._snapshots = snapshots
        self.journal.on_step(snapshots.moved)
        snapshots.start()
        return snapshots

    def figures(self) -> dict[str, Callable[[], float | Mapping[tuple[str, ...], float]]]:
        """What the metrics want to know of the store: name of the metric and whom to ask."""
        journal = self.journal
        return {
            "store_up": lambda: float(journal.up),
            "store_queue_rows": lambda: float(journal.queued),
            "store_lag_seconds": lambda: journal.lag_s,
            "store_bytes": lambda: float(journal.size_bytes),
            "store_rows": lambda: {(kind,): float(n) for kind, n in list(journal.written.items())},
            "store_lost_rows": self._lost,
        }

    def _lost(self) -> dict[tuple[str, ...], float]:
        lost: dict[tuple[str, ...], float] = {key: float(n) for key, n in list(self.journal.lost.items())}
        if self.archive is not None:
            lost["response", "overflow"] = float(self.archive.lost)
        return lost

    async def close(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Write what is left, for at most so long, and disconnect."""
        if self._snapshots is not None:
            await self._snapshots.stop()
        if self.archive is not None:
            await self.archive.stop()
        await self.keys.stop()
        await self.journal.stop(timeout_s)
        await self.database.close()
        self.claim.release()
