"""API keys: made, listed and revoked in the database, checked from memory.

    key = await create(database, tenant="acme", scopes=("call",), ...)      key.token is shown this once
    keys = StoredKeys(database); await keys.refresh(); keys.check(token, now)

Rule: a key is `as-<public id>-<secret>`; only its SHA-256 is kept, compared in constant time. The public id finds the
row and is good for logs. A revoked key stops working when the view is next refreshed, `REFRESH_S` later at most; while
the database is away the keys that are known stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from agentserve.errors import StoreError, UsageError
from agentserve.store import schema
from agentserve.store.database import Database

log = logging.getLogger("agentserve.keys")

SCOPES = ("call", "read", "admin")
REFRESH_S = 2.0
STOP_S = 5.0
KEYS_MAX = 100_000
PREFIX = "as"
ALPHABET = string.ascii_letters + string.digits
ID_CHARS = 8
SECRET_CHARS = 40  # 238 bits

_keys = schema.table(schema.ApiKey)
_NOBODY = hashlib.sha256(b"nobody").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key as it is kept. Also whom it stands for: `tenant`, `scopes`, `key_id`."""

    key_id: str
    tenant: str
    scopes: frozenset[str]
    name: str = ""
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    digest: bytes = field(default=b"", repr=False)

    def state(self, now: float) -> str:
        """valid, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "valid"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key just made: `token` exists only here."""

    token: str
    key: StoredKey


def digest_of(token: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def create(
    database: Database,
    *,
    tenant: str,
    now: float,
    scopes: Iterable[str] = ("call",),
    name: str = "",
    expires_at: float | None = None,
) -> NewKey:
    """Make a key. The token is in the answer and nowhere else."""
    wanted = frozenset(scopes)
    if not wanted or not wanted <= set(SCOPES):
        raise UsageError(
            f"unknown scope {', '.join(sorted(wanted - set(SCOPES))) or '(none)'}",
            remedy=f"scopes are {', '.join(SCOPES)}",
        )
    if not tenant or len(tenant) > 200 or not tenant.isprintable():
        raise UsageError(
            "the tenant's name is empty, too long or unprintable", remedy="give a name of 1 to 200 characters"
        )
    public = "".join(secrets.choice(ALPHABET) for _ in range(ID_CHARS))
    token = f"{PREFIX}-{public}-{''.join(secrets.choice(ALPHABET) for _ in range(SECRET_CHARS))}"
    row = {
        "id": public,
        "tenant": tenant,
        "name": name[:200],
        "digest": digest_of(token),
        "scopes": " ".join(sorted(wanted)),
        "created_at": now,
        "changed_at": now,
        "expires_at": expires_at,
        "revoked_at": None,
    }
    async with database.writing() as connection:
        if int(await connection.scalar(select(func.count()).select_from(_keys)) or 0) >= KEYS_MAX:
            raise UsageError(
                f"there are {KEYS_MAX} keys already", remedy="give tenants one key, not one a call"
            )
        await connection.execute(insert(_keys), [row])
    return NewKey(
        token=token,
        key=StoredKey(
            key_id=public, tenant=tenant, scopes=wanted, name=name, created_at=now, expires_at=expires_at
        ),
    )


async def listed(database: Database, *, tenant: str | None = None) -> list[StoredKey]:
    """All keys, the oldest first, revoked and expired ones too."""
    query = select(_keys).order_by(_keys.c.created_at, _keys.c.id).limit(KEYS_MAX)
    if tenant is not None:
        query = query.where(_keys.c.tenant == tenant)
    async with database.reading() as connection:
        return [_stored(row) for row in await connection.execute(query)]


async def revoke(database: Database, key: str, *, now: float) -> StoredKey:
    """End a key, named by its public id or by the whole token."""
    parts = key.split("-")
    public = parts[1] if len(parts) == 3 and parts[0] == PREFIX else key
    async with database.writing() as connection:
        row = (await connection.execute(select(_keys).where(_keys.c.id == public))).first()
        if row is None:
            raise UsageError(f"there is no key {public[:16]!r}", remedy="`agentserve keys list` shows them")
        if row.revoked_at is None:
            await connection.execute(
                update(_keys).where(_keys.c.id == public).values(revoked_at=now, changed_at=now)
            )
            row = (await connection.execute(select(_keys).where(_keys.c.id == public))).one()
    return _stored(row)


class StoredKeys:
    """The keys that are valid now, in memory. Implements the gateway's `Keys`."""

    def __init__(self, database: Database, *, refresh_s: float = REFRESH_S) -> None:
        self._database = database
        self._refresh_s = refresh_s
        self._by_id: dict[str, StoredKey] = {}
        self._stamp: tuple[int, int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def __len__(self) -> int:
        return len(self._by_id)

    def check(self, token: str, now: float) -> StoredKey | None:
        """Whom this key stands for; None when it is unknown, revoked or expired."""
        parts = token.split("-", 2)
        key = self._by_id.get(parts[1]) if len(parts) == 3 and parts[0] == PREFIX else None
        # an unknown id costs what a wrong secret costs
        same = hmac.compare_digest(key.digest if key is not None else _NOBODY, digest_of(token))
        if key is None or not same or key.state(now) != "valid":
            return None
        return key

    async def refresh(self) -> bool:
        """Read the keys again if any changed; whether they had."""
        async with self._database.reading() as connection:
            # keys are made and revoked, nothing else; times would not do, for a clock may be put back
            row = (await connection.execute(select(func.count(), func.count(_keys.c.revoked_at)))).one()
            stamp = (int(row[0]), int(row[1]))
            if stamp == self._stamp:
                return False
            rows = await connection.execute(select(_keys).limit(KEYS_MAX))
            self._by_id = {key.key_id: key for key in map(_stored, rows)}
            self._stamp = stamp
            return True

    def start(self) -> None:
        """Refresh now and then."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.get_running_loop().create_task(self._keep_fresh())

    async def stop(self) -> None:
        """No more refreshing."""
        if self._task is not None:
            self._stopping.set()  # a query under way is finished, so that its connection is given back
            await asyncio.wait([self._task], timeout=STOP_S)
            self._task.cancel()
            self._task = None

    async def _keep_fresh(self) -> None:
        said = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_s):
                    await self._stopping.wait()
                return
            try:
                await self.refresh()
                said = False
            except StoreError as error:
                if not said:
                    log.error("the API keys cannot be refreshed, known ones stay valid: %s", error)
                said = True


def _stored(row: Row[Any]) -> StoredKey:
    return StoredKey(
        key_id=row.id,
        tenant=row.tenant,
        scopes=frozenset(row.scopes.split()),
        name=row.name,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        digest=bytes(row.digest),
    )
