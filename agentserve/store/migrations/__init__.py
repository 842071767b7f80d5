"""Bringing a database to the schema of this version.

Rule: a revision, once released, is never edited; a new one is added. The embedded SQLite is upgraded when it is opened,
PostgreSQL when the operator says so with `agentserve db upgrade`.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection

from agentserve.errors import StoreError
from agentserve.store.database import Database


def configuration() -> Config:
    """Alembic's settings, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision."""
    found = ScriptDirectory.from_config(configuration()).get_current_head()
    assert found is not None
    return found


def known() -> set[str]:
    """All revisions up to the newest."""
    return {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}


def refuse_newer(database: Database, found: str | None) -> None:
    """Leave alone what a version after this one made."""
    if found is not None and found not in known():
        raise StoreError(
            f"the database {database.name} is at revision {found}, of a newer agentserve; this one knows {head()}",
            remedy="install the newer version again, or restore the backup from before it",
        )


async def current(database: Database) -> str | None:
    """The revision that the database has; None when it has no tables of ours."""

    def ask(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with database.reading() as connection:
        return await connection.run_sync(ask)


async def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring it to the newest revision; the revisions before and after."""
    before = await current(database)
    if before == head():
        return before, before
    refuse_newer(database, before)

    def run(connection: Connection) -> None:
        found = MigrationContext.configure(connection).get_current_revision()
        if found == head():
            return  # another gateway was faster
        if found is None and database.embedded:
            _refuse_strange(database, connection)
        config = configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async with database.writing() as connection:
        if not database.embedded:  # two operators at once: the second waits and finds it done
            await connection.execute(text("SELECT pg_advisory_xact_lock(7286314)"))
        await connection.run_sync(run)
    return before, head()


def _refuse_strange(database: Database, connection: Connection) -> None:
    """Put no tables into the file of another program."""
    strange = connection.scalar(text("SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 1"))
    if strange is not None:
        raise StoreError(
            f"the file of {database.name} is another program's: it has a table {strange!r} and none of ours",
            remedy="let store.url name a file of its own",
        )


async def ready(database: Database) -> None:
    """Make the embedded database; insist that another one was upgraded."""
    if database.embedded:
        await upgrade(database)
        return
    found = await current(database)
    refuse_newer(database, found)
    if found != head():
        state = "has no tables of ours" if found is None else f"is at revision {found}, not {head()}"
        raise StoreError(f"the database {database.name} {state}", remedy="run `agentserve db upgrade`")
