"""One database by URL: SQLite in WAL mode, or PostgreSQL.

Rule: the only place that knows drivers and dialects apart. Everything else writes SQLAlchemy Core.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Table, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from agentserve.errors import ConfigError, StoreError

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 60.0
BUSY_TIMEOUT_MS = 10_000
WAL_TRIES_MAX = 20  # of as many that open a new file at once, one each time is done
POOL_MAX = 5

# SQLite's driver looks for an adapter of each value that is not exactly a number or a text, and where there is none it
# makes an error and drops it; most rows have some of these.
sqlite3.register_adapter(type(None), lambda nothing: nothing)
sqlite3.register_adapter(bool, int)

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}


class Database:
    """Connections to one database. Make one per event loop; `close` it in the same loop.

    `patient`: a command may take as long as it takes."""

    def __init__(self, url: str, *, patient: bool = False) -> None:
        self.url = normalised(url)
        self.dialect = self.url.get_backend_name()
        self.engine: AsyncEngine = _engine(self.url, None if patient else COMMAND_TIMEOUT_S)

    @property
    def embedded(self) -> bool:
        """Is it a file of ours?"""
        return self.dialect == "sqlite"

    @property
    def absent(self) -> bool:
        """Is it a file that is not there yet?"""
        return self.embedded and not Path(self.url.database or "").is_file()

    @property
    def name(self) -> str:
        """For messages: the URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def insert(self, table: Table) -> Any:
        """An insert that can say what happens on conflict; both dialects spell it alike."""
        return sqlite.insert(table) if self.embedded else postgresql.insert(table)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes, committed at the end; errors are the driver's."""
        async with self.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """The same, and what goes wrong is a `StoreError`."""
        try:
            async with self.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise store_error(error, self.name) from error

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read from; what goes wrong is a `StoreError`."""
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self.engine.connect())
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                raise store_error(error, self.name) from error
            try:
                yield connection
            except (SQLAlchemyError, TimeoutError) as error:
                raise store_error(error, self.name) from error

    async def answers(self) -> bool:
        """Is it there?"""
        try:
            async with self.engine.connect() as connection:
                await connection.execute(select(1))
        except (SQLAlchemyError, OSError, TimeoutError):
            return False
        return True

    async def size_bytes(self) -> int:
        """How much room it takes."""
        async with self.reading() as connection:
            if self.embedded:
                pages = await connection.scalar(text("PRAGMA page_count"))
                free = await connection.scalar(text("PRAGMA freelist_count"))
                size = await connection.scalar(text("PRAGMA page_size"))
                return (int(pages or 0) - int(free or 0)) * int(size or 0)
            return int(await connection.scalar(select(func.pg_database_size(func.current_database()))) or 0)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def normalised(url: str) -> URL:
    """The URL with the driver that we use, or a `ConfigError` that says what a URL looks like."""
    remedy = "write sqlite:///agentserve.db or postgresql://user:password@host/database"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("store.url is not a database URL", remedy=remedy) from error
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None:
        raise ConfigError(f"store.url names {parsed.drivername!r}, which is not supported", remedy=remedy)
    if driver.startswith("postgresql") and importlib.util.find_spec("asyncpg") is None:
        raise ConfigError(
            "store.url names PostgreSQL, whose driver is not installed",
            remedy="pip install 'agentserve-gateway[postgres]'",
        )
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ConfigError("store.url names no file", remedy=remedy)
    return parsed.set(drivername=driver)


# What a driver says, and what to do about it; the first that is found in the message counts.
_REMEDIES = (
    ("database is locked", "somebody keeps the file locked: another process? give each gateway its own file"),
    ("database or disk is full", "make room on the disk"),
    ("No space left", "make room on the database's disk"),
    ("readonly database", "make the file and its folder writable for the gateway's user"),
    ("read-only transaction", "let store.url name the primary, not a standby"),
    ("unable to open database file", "make the file and its folder readable and writable for the gateway's user"),
    ("file is not a database", "store.url names a file that is no SQLite database: name another"),
    ("disk image is malformed", "the file is damaged: restore a backup, or move it away and start anew"),
    ("disk I/O error", "check the disk, its free room and the process's limit on file sizes"),
    ("authentication failed", "put the password that the database knows into store.url and restart; or leave it out "
     "there and keep it in the file that PGPASSFILE names, which is read at each connection"),
    ("too many connections", "let the database take more connections, or end those that nobody uses"),
    ("remaining connection slots", "let the database take more connections, or end those that nobody uses"),
    ("already exists", "something else has tables there: give agentserve a database of its own"),
    ("permission denied", "grant store.url's user its tables"),
)  # fmt: skip
_ROWS_FAULTS = (
    "22",
    "23",
    "42",
    "54",
)  # PostgreSQL: the value, the constraint, the type, too large for an index
_NOT_THE_ROWS = ("42501", "42P01")  # no permission, no table: the same for every row


def store_error(error: BaseException, name: str) -> StoreError:
    """One line about what the database said, and what to do."""
    orig = getattr(error, "orig", None) or error
    said = (str(orig).strip() or type(orig).__name__).splitlines()[0][:300]
    if "no such table" in said or ("relation" in said and "does not exist" in said):
        return StoreError(f"the database {name} has no tables of ours", remedy="run `agentserve db upgrade`")
    remedy = next((do for words, do in _REMEDIES if words in said), None)
    return StoreError(
        f"the database {name} failed: {said}",
        remedy=remedy or "check that it runs and that store.url is right",
    )


def blames_rows(error: BaseException) -> bool:
    """Would the same rows fail again on a database that is well? One that is away, full, locked or read-only is not."""
    if isinstance(error, (OSError, TimeoutError)):
        return False
    if not isinstance(error, DBAPIError):
        return True  # what was to be written could not even be handed over
    if error.connection_invalidated:
        return False
    code = next((c for e in _causes(error) if (c := getattr(e, "sqlstate", None))), None)
    if code is not None:
        return code.startswith(_ROWS_FAULTS) and code not in _NOT_THE_ROWS
    if isinstance(error, (IntegrityError, DataError, ProgrammingError)):
        return True
    # a value that a driver cannot encode is an error of its interface, and so is a connection that is closed
    return any(isinstance(cause, (ValueError, TypeError, OverflowError)) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.orig if isinstance(error, DBAPIError) else error.__cause__


def _engine(url: URL, command_timeout_s: float | None) -> AsyncEngine:
    shared: dict[str, Any] = {
        "json_serializer": lambda value: msgspec.json.encode(value).decode(),
        "json_deserializer": msgspec.json.decode,
    }
    if url.get_backend_name() == "sqlite":
        parent = Path(url.database or ".").parent
        if not parent.is_dir():
            raise ConfigError(
                f"the directory {parent} of store.url does not exist", remedy="create it or name another file"
            )
        if Path(url.database or ".").is_dir():
            raise ConfigError(
                f"store.url names the directory {url.database}",
                remedy="name a file in it, such as agentserve.db",
            )
        engine = create_async_engine(url, pool_size=POOL_MAX, max_overflow=0, **shared)
        event.listen(engine.sync_engine, "do_connect", lambda *_: _make_private(Path(url.database or "")))
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        url,
        pool_size=POOL_MAX,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": command_timeout_s,
            "server_settings": {"application_name": "agentserve"},
        },
        **shared,
    )


def _make_private(file: Path) -> None:
    """A new file is for its owner alone, and so are the files that SQLite makes beside it; one that is there stays."""
    with suppress(OSError):  # it is there already, or SQLite will say what is wrong
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _prepare_sqlite(connection: Any, record: Any) -> None:
    """WAL lets readers and the writer work side by side; a committed batch outlives the process."""
    connection.isolation_level = None  # the driver begins no transaction by itself, see `_begin_sqlite`
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")  # first: the others may have to wait
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before the first table, else it has no effect
        write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()
    except Exception:
        connection.close()  # nobody else knows of it yet
        raise


def write_ahead(cursor: Any) -> None:
    """Go over to WAL. Two that do so at once on a new file would wait for each other, so SQLite refuses one of them at
    once, whatever its timeout; it does wait for the lock itself, and whoever had it is then done."""
    for _ in range(WAL_TRIES_MAX - 1):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except Exception as error:
            if not _is_locked(error):
                raise
        else:
            return
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute("ROLLBACK")
    cursor.execute("PRAGMA journal_mode=WAL")


def _is_locked(error: Exception) -> bool:
    """Is it what SQLite says when another has the file?"""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY


def _begin_sqlite(connection: Connection) -> None:
    """Tables are made in a transaction too, and a writer takes the lock at once instead of failing to later."""
    how = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {how}")
