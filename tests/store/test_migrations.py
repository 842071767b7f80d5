"""The tables that the migrations make are the tables that the code has."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select, text
from sqlalchemy.engine import Connection

from agentserve.cli import main
from agentserve.errors import ConfigError, StoreError
from agentserve.store import export, keys, migrations, queries, schema
from agentserve.store.database import Database, write_ahead
from agentserve.store.folding import Fold
from agentserve.store.recovery import journal_of
from agentserve.store.writing import Writer
from tests.store.conftest import AT, Cluster, Collected, Gateway


async def test_the_migrations_make_exactly_the_schema_of_the_code(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, schema.Row.metadata))

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def everything(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """The rows of all tables that there are, in order."""

    def there(connection: Connection, name: str) -> bool:
        return connection.dialect.has_table(connection, name)

    found = {}
    async with database.reading() as connection:
        for table in schema.Row.metadata.sorted_tables:
            if await connection.run_sync(there, table.name):
                rows = await connection.execute(select(table).order_by(*table.primary_key.columns))
                found[table.name] = [tuple(row) for row in rows]
    return found


async def test_a_database_of_the_first_version_keeps_every_row_and_every_key_when_it_is_upgraded(
    url: str,
) -> None:
    database = Database(url)

    def first(connection: Connection) -> None:
        config = migrations.configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    async with database.writing() as connection:
        await connection.run_sync(first)
    written = Collected()
    Gateway(written).program("acme/p", 3, AT)
    written.fact("account", {"tenant": "acme", "service": 1.5, "at": AT})
    written.fact("chain", {"program": "acme/p", "body": b"\x00\xff", "at": AT})
    folded = Fold().fold(written.told, written.records)
    await Writer(database, "first").write(folded, 1, 0, AT)
    key = await keys.create(database, tenant="acme", now=AT, name="Großküche ☕")
    before = await everything(database)
    assert before["steps"]
    assert before["batches"]

    assert await migrations.upgrade(database) == ("0001", migrations.head())

    after = await everything(database)
    assert {name: after[name] for name in before} == before
    assert all(not after[name] for name in after.keys() - before.keys())
    stored = keys.StoredKeys(database)
    await stored.refresh()
    assert stored.check(key.token, AT) is not None
    [line] = [line async for line in export.lines(database, "programs")]
    assert [turn["in"] for turn in line["turns"]] == [1000] * 3
    [piece] = await journal_of(database)
    assert len(piece.told) == len(written.told)
    await database.close()


async def test_upgrading_twice_changes_nothing_and_tells_the_revisions(url: str) -> None:
    database = Database(url)
    assert await migrations.upgrade(database) == (None, migrations.head())
    assert await migrations.upgrade(database) == (migrations.head(), migrations.head())
    await database.close()


async def test_two_gateways_that_start_at_once_make_the_tables_once(url: str) -> None:
    one, other = Database(url), Database(url)
    await asyncio.gather(migrations.upgrade(one), migrations.upgrade(other))
    assert (await queries.counts(other))["steps"] == 0
    await one.close()
    await other.close()


async def test_who_goes_over_to_wal_while_another_is_at_it_waits_until_it_is_done(tmp_path: Path) -> None:
    one = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    other = sqlite3.connect(tmp_path / "new.db", isolation_level=None, timeout=30.0, check_same_thread=False)
    one.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("PRAGMA journal_mode=WAL")  # at once: it is no use to ask it to wait
    gone_over = asyncio.create_task(asyncio.to_thread(write_ahead, other.cursor()))
    await asyncio.sleep(0.2)
    assert not gone_over.done()
    one.execute("COMMIT")
    await gone_over
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    one.close()
    other.close()


async def test_the_embedded_database_is_made_when_it_is_opened(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    assert database.absent
    await migrations.ready(database)
    assert await migrations.current(database) == migrations.head()
    async with database.reading() as connection:
        assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
    await database.close()


async def test_postgresql_is_upgraded_only_when_the_operator_says_so(cluster: Cluster) -> None:
    database = Database(cluster.url())
    with pytest.raises(StoreError, match="run `agentserve db upgrade`"):
        await migrations.ready(database)
    await migrations.upgrade(database)
    await migrations.ready(database)
    await database.close()


async def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    database = Database(url)
    await migrations.upgrade(database)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for opening in (migrations.ready, migrations.upgrade):
        with pytest.raises(StoreError, match=r"revision 9999, of a newer agentserve.*restore the backup"):
            await opening(database)
    assert await migrations.current(database) == "9999"
    await database.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://host/db", "not supported"),
        ("sqlite://", "names no file"),
        ("sqlite:////no/such/directory/x.db", "does not exist"),
        ("sqlite:////", "names the directory"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_what_to_write(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Database(wrong)


async def test_a_database_that_is_away_is_an_error_of_one_line() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    assert not await database.answers()
    with pytest.raises(StoreError, match="check that it runs") as caught:
        await migrations.current(database)
    assert "\n" not in str(caught.value)
    await database.close()


async def test_an_upgrade_waits_for_another_however_long_that_takes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = cluster.url()
    first = Database(url)
    monkeypatch.setattr("agentserve.store.database.COMMAND_TIMEOUT_S", 0.2)
    async with first.writing() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(7286314)"))
        second = asyncio.create_task(asyncio.to_thread(main, ["db", "upgrade", "--store", url]))
        await asyncio.sleep(1.5)
        assert not second.done(), capsys.readouterr().err
    await first.close()
    assert await second == 0
    hurried = Database(url)
    with pytest.raises(StoreError, match="TimeoutError"):
        async with hurried.reading() as connection:
            await connection.execute(text("SELECT pg_sleep(5)"))
    await hurried.close()


async def test_the_file_of_another_program_is_left_as_it_is(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(tmp_path / "test.db")) as theirs:
        theirs.execute("CREATE TABLE recipes (name TEXT)")
    for verb, status in ((["programs"], 2), (["db", "upgrade"], 1), (["keys", "create"], 1)):
        assert await asyncio.to_thread(main, [*verb, "--store", sqlite_url]) == status
        said = capsys.readouterr().err
        assert "none of ours" in said or "no database of ours" in said
    with closing(sqlite3.connect(tmp_path / "test.db")) as theirs:
        assert theirs.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_a_verb_that_reads_makes_no_tables_in_an_empty_file(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.db").touch()
    assert main(["tenants", "--store", sqlite_url]) == 2
    assert "no database of ours" in capsys.readouterr().err
