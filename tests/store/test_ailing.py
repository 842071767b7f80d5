"""A database that is full, locked, read-only or picky: nothing is lost for it, and it is said what to do."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from agentserve.errors import StoreError
from agentserve.store import keys, migrations, queries
from agentserve.store.database import Database, blames_rows, store_error
from agentserve.store.folded import Folded
from agentserve.store.folding import Fold
from agentserve.store.recovery import journal_of
from agentserve.store.writing import Writer
from tests.store.conftest import AT, Cluster, step_record

HERE = Path(__file__).parent


def three_steps() -> Folded:
    return Fold().fold([], [step_record(f"s{i}", "acme/p", AT) for i in range(3)])


async def failure(database: Database, statement: str) -> BaseException:
    """What the driver says to it."""
    with pytest.raises((SQLAlchemyError, OSError)) as caught:
        async with database.begin() as connection:
            await connection.execute(text(statement))
    return caught.value


async def test_a_disk_that_is_full_for_a_while_costs_no_row(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/full.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "ailing.py"),
        url,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 180)
    seen = json.loads(out)
    assert "check the disk, its free room" in seen["said"] or "make room on the disk" in seen["said"]
    assert seen["waiting"] > 0
    assert seen["written"]
    assert seen["lost"] == 0
    database = Database(url)
    assert (await queries.counts(database, ["steps"])) == {"steps": 3000}
    pieces = await journal_of(database)
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    await database.close()


async def test_a_file_that_somebody_locks_makes_the_batch_wait_and_not_its_rows_refused(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path}/locked.db")
    await migrations.upgrade(database)
    await database.close()
    event.listen(  # so that the test need not wait as long as the journal does
        database.engine.sync_engine, "connect", lambda it, _: it.execute("PRAGMA busy_timeout=10")
    )
    other = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DBAPIError) as caught:
        await Writer(database, "w").write_apart(three_steps(), 1, 0, AT)
    assert not blames_rows(caught.value)
    assert "somebody keeps the file locked" in str(store_error(caught.value, "x"))
    other.execute("ROLLBACK")
    other.close()
    assert await Writer(database, "w").write_apart(three_steps(), 1, 0, AT) == {}
    assert (await queries.counts(database, ["steps", "batches"])) == {"steps": 3, "batches": 1}
    await database.close()


async def test_a_file_that_may_not_be_written_says_whom_to_let(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    await migrations.upgrade(database)
    await database.close()
    event.listen(database.engine.sync_engine, "connect", lambda it, _: it.execute("PRAGMA query_only=ON"))
    with pytest.raises(StoreError, match="writable for the gateway's user"):
        await keys.create(database, tenant="acme", now=AT)
    await database.close()


async def test_what_is_no_database_of_sqlite_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are notes, not a database\n" * 100)
    database = Database(f"sqlite:///{tmp_path}/notes.txt")
    with pytest.raises(StoreError, match="names a file that is no SQLite database"):
        await migrations.ready(database)
    await database.close()


async def test_what_postgresql_lacks_or_forbids_is_not_the_rows_fault_and_wrong_values_are(
    cluster: Cluster,
) -> None:
    database = Database(cluster.url())
    await migrations.upgrade(database)
    async with database.begin() as connection:
        await connection.execute(
            text(
                "CREATE FUNCTION fails(code text) RETURNS void LANGUAGE plpgsql AS "
                "$$BEGIN RAISE EXCEPTION USING ERRCODE = code, MESSAGE = 'it failed'; END$$"
            )
        )
    well, ill = {}, {}
    for code in ("22003", "22021", "23502", "42804", "54000"):
        well[code] = blames_rows(await failure(database, f"SELECT fails('{code}')"))
    for code in ("25006", "40P01", "42501", "53100", "53200", "57014", "57P01", "58030", "XX001"):
        ill[code] = blames_rows(await failure(database, f"SELECT fails('{code}')"))
    assert all(well.values()), well
    assert not any(ill.values()), ill
    cluster.stop()
    try:
        away = await failure(database, "SELECT 1")
    finally:
        cluster.start()
    assert not blames_rows(away)
    await database.close()


async def test_a_wrong_password_is_said_to_be_one(cluster: Cluster) -> None:
    database = Database(cluster.url())
    async with database.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS guarded"))
        await connection.execute(text("CREATE ROLE guarded LOGIN PASSWORD 'new'"))
    await database.close()
    with cluster.guarding("guarded"):
        stale = Database(f"postgresql://guarded:old@127.0.0.1:{cluster.port}/postgres")
        async with asyncio.timeout(60):
            while await stale.answers():  # the server reads its rules again when it gets to it
                await asyncio.sleep(0.02)
        with pytest.raises(StoreError, match="put the password that the database knows") as caught:
            await migrations.ready(stale)
        assert "old" not in str(caught.value)
        await stale.close()


async def test_a_password_that_changes_in_its_file_is_known_without_a_restart(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = Database(cluster.url())
    file = tmp_path / "pgpass"
    monkeypatch.setenv("PGPASSFILE", str(file))

    async def changed(password: str) -> None:
        async with admin.begin() as connection:
            await connection.execute(text(f"ALTER ROLE rotated PASSWORD '{password}'"))
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'")
            )

    def known(password: str) -> None:
        file.write_text(f"*:*:*:rotated:{password}\n")
        file.chmod(0o600)

    async with admin.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS rotated"))
        await connection.execute(text("CREATE ROLE rotated LOGIN"))
    with cluster.guarding("rotated"):
        running = Database(f"postgresql://rotated@127.0.0.1:{cluster.port}/postgres")
        known("one")
        await changed("one")
        async with asyncio.timeout(60):
            while not await running.answers():
                await asyncio.sleep(0.02)
            await changed("two")
            while await running.answers():
                await asyncio.sleep(0.02)
            known("two")
            while not await running.answers():
                await asyncio.sleep(0.02)
        await running.close()
    await admin.close()


def test_what_cannot_even_be_handed_to_a_driver_is_the_rows_fault() -> None:
    assert blames_rows(OverflowError("too large"))
    assert not blames_rows(ConnectionRefusedError())
    assert not blames_rows(TimeoutError())
