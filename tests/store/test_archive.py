"""Stored responses at rest: written behind, read back by the next gateway, let go of when they are old or too much."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select

from agentserve.config import StoreSettings
from agentserve.errors import NotFound, Overloaded
from agentserve.live.kept import Kept
from agentserve.ports import RUNNING
from agentserve.store import archive as archive_module
from agentserve.store import schema
from agentserve.store.archive import RECORD_BYTES_MAX, WAITING_BYTES_MAX, Archive
from agentserve.store.database import Database

PATIENCE_S = 60.0


def settings(url: str, **given: Any) -> StoreSettings:
    return StoreSettings(url=url, **{"responses_days": 1.0, **given})


async def written(archive: Archive) -> None:
    """Wait until nothing waits to be written."""
    async with asyncio.timeout(PATIENCE_S):
        while archive.waiting:
            await asyncio.sleep(0.01)


async def rows(database: Database) -> int:
    table = schema.table(schema.StoredResponse)
    async with database.reading() as connection:
        return int(await connection.scalar(select(func.count()).select_from(table)) or 0)


def body(number: int, previous: str | None = None) -> dict[str, Any]:
    return {
        "id": f"resp_{number}",
        "object": "response",
        "status": "completed",
        "previous_response_id": previous,
        "output": [{"type": "message", "id": f"msg_{number}"}],
        "usage": {"total_tokens": 7},
    }


async def test_a_chain_of_responses_is_found_again_after_a_restart(database: Database, url: str) -> None:
    first = Archive(database, settings(url))
    first.start()
    kept = Kept()
    kept.archive = first
    kept.keep("t", body(1), ["a", "A"], new_at=0, size=10)
    kept.keep("t", body(2, "resp_1"), ["a", "A", "b", "B"], new_at=2, size=10)
    conversation = kept.begin("t", items=[{"role": "user", "content": "hello"}], metadata={}, created_at=3)
    await first.stop()
    assert await rows(database) == 3

    again = Kept()
    again.archive = Archive(database, settings(url))
    assert again.lacks("t", "resp_2")
    await again.recall("t", "resp_2")
    assert again.response("t", "resp_2").items == ["a", "A", "b", "B"]
    assert again.response("t", "resp_2").tokens == 7
    assert again.response("t", "resp_1").items == ["a", "A"]
    await again.recall("t", conversation.id)
    assert again.conversation("t", conversation.id).items == conversation.items
    await again.recall("other", "resp_1")
    with pytest.raises(NotFound):
        again.response("other", "resp_1")


async def test_what_is_deleted_is_deleted_at_rest(database: Database, url: str) -> None:
    archive = Archive(database, settings(url))
    archive.start()
    kept = Kept()
    kept.archive = archive
    kept.keep("t", body(1), ["a"], new_at=0, size=1)
    await written(archive)
    assert await rows(database) == 1
    kept.forget("t", "resp_1")
    await kept.recall("t", "resp_1")
    with pytest.raises(NotFound):
        kept.response("t", "resp_1")
    await archive.stop()
    assert await rows(database) == 0


async def test_a_chain_with_a_hole_is_not_half_recalled(database: Database, url: str) -> None:
    archive = Archive(database, settings(url))
    kept = Kept()
    kept.archive = archive
    kept.keep("t", body(1), ["a", "A"], new_at=0, size=1)
    kept.keep("t", body(2, "resp_1"), ["a", "A", "b"], new_at=2, size=1)
    kept.forget("t", "resp_1")
    again = Kept()
    again.archive = archive
    await again.recall("t", "resp_2")
    with pytest.raises(NotFound):
        again.response("t", "resp_2")


async def test_two_who_recall_the_same_at_once_get_the_same(database: Database, url: str) -> None:
    first = Archive(database, settings(url))
    first.start()
    kept = Kept()
    kept.archive = first
    named = kept.begin("t", items=[], metadata={}, created_at=1).id
    await first.stop()
    again = Kept()
    again.archive = Archive(database, settings(url))

    async def add(text: str) -> None:
        await again.recall("t", named)
        again.extend(again.conversation("t", named), [{"role": "user", "content": text}])

    await asyncio.gather(*(add(str(i)) for i in range(8)))
    assert len(again.conversation("t", named).items) == 8


async def test_the_old_and_then_the_oldest_of_too_many_go(database: Database, url: str) -> None:
    now = [1_000_000.0]
    archive = Archive(database, settings(url, responses_mb_max=1), clock=lambda: now[0])
    archive.keep("t", "old", b"x")
    archive.start()
    await written(archive)
    now[0] += 2 * 86_400.0
    assert await archive.load("t", "old") is None, "it is too old, swept or not"
    for i in range(30):
        archive.keep("t", f"r{i}", b"x" * 100_000)
        await written(archive)
        now[0] += 1.0
    await archive.sweep()
    assert await archive.used_bytes() <= 1_000_000
    assert await archive.load("t", "old") is None
    assert await archive.load("t", "r29") is not None
    assert await archive.load("t", "r0") is None
    await archive.stop()


async def test_a_sweep_that_finds_nothing_asks_for_no_lock(database: Database, url: str) -> None:
    archive, other = Archive(database, settings(url)), Database(url)
    async with other.writing(), asyncio.timeout(PATIENCE_S):  # as the journal does when it is at work
        await archive.sweep()
    await other.close()


async def test_nobody_waits_for_a_database_that_is_away_and_what_waits_is_bounded() -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    database = Database(nowhere)
    archive = Archive(database, settings(nowhere))
    archive.start()
    piece = b"x" * (RECORD_BYTES_MAX - 1)
    for i in range(WAITING_BYTES_MAX // len(piece) + 3):
        archive.keep("t", f"r{i}", piece)
    assert archive.lost >= 2
    archive.keep("t", "huge", b"x" * (RECORD_BYTES_MAX + 1))
    with pytest.raises(Overloaded):
        await archive.load("t", "r0")
    last = f"r{WAITING_BYTES_MAX // len(piece) + 2}"
    assert await archive.load("t", last) == piece, "what waits is read from memory"
    await archive.stop()
    await database.close()


async def test_a_record_that_changes_while_it_is_written_is_written_again(
    database: Database, url: str
) -> None:
    archive = Archive(database, settings(url))
    archive.start()
    for i in range(200):
        archive.keep("t", "conv", b"%d" % i)
        if i % 20 == 0:
            await asyncio.sleep(archive_module.EVERY_S / 10)
    await archive.stop()
    assert await Archive(database, settings(url)).load("t", "conv") == b"199"


async def test_without_leave_what_was_kept_goes_and_only_what_runs_is_written(
    database: Database, url: str
) -> None:
    allowed = Archive(database, settings(url))
    allowed.keep("t", "resp_1", b"a prompt")
    allowed.start()
    await allowed.stop()
    assert StoreSettings(url=url).responses_days == 0
    archive = Archive(database, StoreSettings(url=url))
    archive.keep("t", RUNNING + "resp_2", b"it runs")
    archive.start()
    await written(archive)
    await archive.sweep()
    await archive.stop()
    assert await rows(database) == 1
    assert await archive.load("t", RUNNING + "resp_2") == b"it runs"
