"""Who writes to a SQLite file: a lock beside it, which the system takes back when its process ends, however it ends.

Rule: it tells and never forbids. SQLite lets several write; what suffers is what each of them keeps whole.
"""

from __future__ import annotations

import fcntl
import logging
import os

from agentserve.store.database import Database

log = logging.getLogger("agentserve.store")


class Claim:
    """One gateway's word that it writes there."""

    def __init__(self, database: Database) -> None:
        self._held: int | None = None
        file = database.url.database
        if not database.embedded or not file or ":memory:" in file:
            return
        try:
            held = os.open(f"{file}-gateway", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # what cannot be written there, the database says better
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            log.warning(
                "another gateway writes to %s: forecasts, accounts and open programs of one overwrite the other's; "
                "give each a store of its own (--store, store.url)",
                file,
            )
            return
        self._held = held

    def release(self) -> None:
        """It writes no more."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
