"""The store as the gateway opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentserve.config import Settings, StoreSettings
from agentserve.errors import StoreError
from agentserve.store import keys, queries
from agentserve.store.database import Database
from agentserve.store.journal import WriteBehind
from agentserve.store.store import Store
from agentserve.telemetry import Recorder
from agentserve.telemetry.metrics import BY_NAME
from tests.store.conftest import AT, Cluster, Gateway


async def test_the_metrics_of_the_store_are_in_the_table_and_can_be_scraped(sqlite_url: str) -> None:
    store = await Store.open(Settings(store=StoreSettings(url=sqlite_url)), clock=lambda: AT)
    recorder = Recorder()
    for name, ask in store.figures().items():
        assert name in BY_NAME
        recorder.pull(name, ask)
    Gateway(store.journal).step("acme/p", 0, AT)
    assert await store.journal.flushed()
    store.journal.lost["event", "overflow"] += 2
    text = recorder.render("")[1].decode()
    assert 'agentserve_store_rows_total{kind="step"} 1.0' in text
    assert 'agentserve_store_lost_rows_total{kind="event",why="overflow"} 2.0' in text
    assert "agentserve_store_up 1.0" in text
    errors = [line for line in text.splitlines() if line.startswith("agentserve_telemetry_errors_total{")]
    assert errors
    assert all(line.endswith(" 0.0") for line in errors)
    await store.close()


async def test_keys_made_while_the_gateway_runs_are_known_when_it_starts(
    url: str, database: Database
) -> None:
    made = await keys.create(database, tenant="acme", now=AT)
    store = await Store.open(Settings(store=StoreSettings(url=url)), clock=lambda: AT)
    found = store.keys.check(made.token, AT)
    assert found is not None
    assert found.tenant == "acme"
    assert not store.away
    await store.close()


async def test_a_database_that_was_not_upgraded_keeps_the_gateway_from_starting(cluster: Cluster) -> None:
    with pytest.raises(StoreError, match="run `agentserve db upgrade`"):
        await Store.open(Settings(store=StoreSettings(url=cluster.url())))


async def test_one_that_is_away_does_not_and_says_so() -> None:
    store = await Store.open(Settings(store=StoreSettings(url="postgresql://nobody@127.0.0.1:1/none")))
    assert store.away
    await store.close(timeout_s=0.2)


async def test_totals_add_up_what_happened_since(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    gateway.program("acme/p", 3, AT)
    gateway.program("acme/q", 2, AT + 1000)
    assert await journal.flushed()
    whole = await queries.totals(database)
    assert (whole["steps"], whole["programs"], whole["pins"]) == (5, 2, 5)
    assert whole["cached_tokens"] == 4000
    assert whole["queue_s_mean"] == pytest.approx(0.5)
    late = await queries.totals(database, since=AT + 999)
    assert (late["steps"], late["programs"]) == (2, 1)
    nothing = await queries.totals(database, since=AT + 1e6)
    assert (nothing["steps"], nothing["prompt_tokens"], nothing["seconds_mean"]) == (0, 0, None)


async def test_programs_page_on_and_lists_are_bounded(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    for number in range(7):
        gateway.step(f"acme/{number}", 0, AT + number * 10)
    assert await journal.flushed()
    first = await queries.programs(database, limit=4)
    rest = await queries.programs(database, limit=4, before=first[-1]["last_at"])
    assert [row["id"] for row in (*first, *rest)] == [f"acme/{n}" for n in range(6, -1, -1)]
    assert queries.bounded(10**9) == queries.ROWS_MAX
    assert await queries.program(database, "3") == (await queries.programs(database, search="/3"))[0]
    assert await queries.program(database, "%") is None


async def test_a_new_file_and_those_beside_it_are_for_their_owner_alone(
    sqlite_url: str, tmp_path: Path
) -> None:
    store = await Store.open(Settings(store=StoreSettings(url=sqlite_url)), clock=lambda: AT)
    Gateway(store.journal).step("acme/p", 0, AT)
    assert await store.journal.flushed()
    modes = modes_in(tmp_path)
    assert {"test.db", "test.db-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}
    await store.close()


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def test_a_second_gateway_on_one_file_is_told_and_a_later_one_is_not(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(store=StoreSettings(url=sqlite_url))
    said = "another gateway writes to"
    first = await Store.open(settings)
    assert said not in caplog.text
    second = await Store.open(settings)
    assert caplog.text.count(said) == 1
    await first.close()
    await second.close()
    caplog.clear()
    await (await Store.open(settings)).close()
    assert said not in caplog.text
