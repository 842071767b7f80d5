"""What is old, or too much, goes: a little at a time, detail first."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from agentserve.config import StoreSettings
from agentserve.store import export, queries
from agentserve.store.database import Database
from agentserve.store.folding import Fold
from agentserve.store.retention import CHUNK_ROWS, Sweeper
from agentserve.store.writing import Writer
from tests.store.conftest import AT, Collected, Gateway, step_record

DAY = 86_400.0


async def fill(database: Database, programs: int, at: Callable[[int], float]) -> None:
    """Programs of two steps, each with all that belongs to it, in batches written when they happened."""
    writer = Writer(database, "w")
    fold = Fold()
    for number in range(programs):
        collected = Collected()
        Gateway(collected).program(f"acme/{number}", 2, at(number))
        await writer.write(fold.fold(collected.told, collected.records), number + 1, 0, at(number))


def sweeper(database: Database, now: float, **settings: Any) -> Sweeper:
    return Sweeper(database, StoreSettings(**settings), clock=lambda: now)


async def test_what_is_older_than_the_limit_goes_and_nothing_else(database: Database) -> None:
    await fill(database, 10, lambda n: AT + n * DAY)
    await database.engine.dispose()
    now = AT + 9.5 * DAY
    while await sweeper(database, now, retention_days=5).sweep():
        pass
    left = await queries.programs(database)
    assert [row["id"] for row in left] == [f"acme/{n}" for n in (9, 8, 7, 6, 5)]
    counted = await queries.counts(database)
    assert (counted["steps"], counted["tool_calls"], counted["pins"], counted["decisions"]) == (
        10,
        10,
        10,
        20,
    )
    assert counted["batches"] == 5
    assert counted["tenants"] == counted["workflows"] == 1  # never swept


async def test_an_export_while_old_rows_are_swept_tells_all_that_stays_and_nothing_that_is_half_gone(
    database: Database,
) -> None:
    programs = export.PAGE + 60
    await fill(database, programs, lambda n: AT + n * 60.0)
    found = export.lines(database, "programs")
    told = [await anext(found) for _ in range(10)]
    kept = programs - 100
    now = AT + 100 * 60.0 + 5 * DAY - 1.0
    while await sweeper(database, now, retention_days=5).sweep():
        pass
    told += [line async for line in found]
    assert [line["id"] for line in told] == [f"acme/{n}" for n in (*range(10), *range(100, programs))]
    assert all(line["n"] == 2 for line in told)
    assert (await queries.counts(database, ["programs"]))["programs"] == kept


async def test_one_tick_deletes_no_more_than_its_chunks(database: Database) -> None:
    rows = [step_record(f"s{n}", "acme/p", AT) for n in range(CHUNK_ROWS * 2 + 5)]
    await Writer(database, "w").write(Fold().fold([], rows), 1, 0, AT + 99 * DAY)
    sweep = sweeper(database, AT + 100 * DAY, retention_days=30)
    assert await sweep.sweep(chunks=1)
    assert (await queries.counts(database, ["steps"]))["steps"] == CHUNK_ROWS + 5
    assert sweep.swept == CHUNK_ROWS
    while await sweep.sweep(chunks=1):
        pass
    assert (await queries.counts(database, ["steps"]))["steps"] == 0


async def test_too_much_is_cut_down_to_size_with_detail_going_first(database: Database) -> None:
    at = AT
    rows = [step_record(f"s{n}", f"acme/{n % 50}", at, detail="x" * 20) for n in range(2000)]
    fold, writer = Fold(), Writer(database, "w")
    for number in range(30):
        folded = fold.fold([], rows[number * 60 : number * 60 + 60])
        folded.journal = os.urandom(60_000)  # what cannot be compressed
        await writer.write(folded, number + 1, 0, at)
    sweep = sweeper(database, at + 1, size_mb_max=2)
    before = await sweep.used_bytes()
    assert before > 2_000_000
    while await sweep.sweep():
        pass
    assert await sweep.used_bytes() <= 2_000_000
    counted = await queries.counts(database)
    assert counted["batches"] == 0  # the journal's pieces went,
    assert counted["steps"] == 1800  # and that was enough to keep every step


async def test_freed_room_is_given_back_to_the_file_system(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    from agentserve.store import migrations

    await migrations.upgrade(database)
    folded = Fold().fold([], [])
    folded.journal = bytes(3_000_000)
    await Writer(database, "w").write(folded, 1, 0, AT)

    async def pages() -> int:
        from sqlalchemy import text

        async with database.reading() as connection:
            return int(await connection.scalar(text("PRAGMA page_count")) or 0)

    before = await pages()
    while await sweeper(database, AT + 60 * DAY, retention_days=30).sweep():
        pass
    assert await pages() < before / 2
    await database.close()


async def test_the_size_is_told_before_all_that_is_old_was_swept(database: Database) -> None:
    await fill(database, 40, lambda n: AT + n)
    sweeping = sweeper(database, AT + 30 * DAY, retention_days=5)
    assert await sweeping.sweep(chunks=1), "there is more to do"
    assert sweeping.size_bytes > 0
