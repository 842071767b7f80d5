"""After the process is gone, the next one goes on where it stood."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentserve.config import SchedulerSettings, Settings, StoreSettings
from agentserve.core import events as ev
from agentserve.core.fairness import Accounts
from agentserve.core.forecast import ToolCall, ToolForecaster
from agentserve.core.identity import CallEvidence, Item, ReplyEvidence, Resolver
from agentserve.core.ids import ProgramId, TenantId
from agentserve.store import migrations, queries
from agentserve.store.database import Database
from agentserve.store.recovery import journal_of, recover
from agentserve.store.snapshots import Snapshots
from agentserve.store.store import Store
from tests.store.conftest import AT, Gateway, step_record

HERE = Path(__file__).parent


def settings_for(url: str) -> Settings:
    return Settings(
        store=StoreSettings(url=url, flush_interval_s=0.02), scheduler=SchedulerSettings(program_idle_s=600.0)
    )


async def opened(url: str, at: float = AT) -> Store:
    return await Store.open(settings_for(url), clock=lambda: at)


def test_a_new_database_recovers_nothing(sqlite_url: str) -> None:
    async def run() -> None:
        store = await opened(sqlite_url)
        recovered = store.recovered
        assert (recovered.forecasts, recovered.accounts, recovered.chains) == ({}, {}, ())
        await store.close()

    asyncio.run(run())


async def test_forecasts_and_accounts_are_as_they_were(url: str, database: Database) -> None:
    tools = ToolForecaster()
    for k in range(50):
        call = ToolCall(name="bash", argument_class="git diff")
        tools.observe(tenant="acme", program="acme/p", call=call, seconds=1.0 + k % 5)
    accounts = Accounts(lambda tenant: 1.0)
    accounts.hold(TenantId("acme"), 123, AT - 1.0)
    store = await opened(url)
    store.snapshots(
        forecasts={"tools": tools.to_bytes},
        accounts=lambda: {str(t): s for t, s in accounts.services(AT).items()},
        graphs=lambda: {("acme", "coder"): b"learned"},
    )
    await store.close()

    again = await opened(url)
    same = ToolForecaster.from_bytes(again.recovered.forecasts["tools"])
    asked = [ToolCall(name="bash", argument_class="git diff")]
    for q in (0.1, 0.5, 0.9):
        before = tools.predict(tenant="acme", program="acme/p", calls=asked).quantile(q)
        assert same.predict(tenant="acme", program="acme/p", calls=asked).quantile(q) == pytest.approx(
            before, rel=0.02
        )
    assert again.recovered.accounts == {"acme": 123.0}
    assert [(g.name, g.kind, g.body) for g in again.recovered.graphs] == [("coder", "learned", b"learned")]
    await again.close()


def call_of(*texts: str) -> CallEvidence:
    """A call without any name in it: its program must be told from what was said before."""
    items = tuple(
        Item(role="user" if k % 2 == 0 else "assistant", digest=hash_of(t)) for k, t in enumerate(texts)
    )
    return CallEvidence(items=items)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[:8].ljust(8, b"\0"), "big")


async def test_programs_that_were_not_heard_of_for_long_are_over(url: str, database: Database) -> None:
    store = await opened(url)
    for k, name in enumerate(("old", "older", "new")):
        at = {"old": AT - 700, "older": AT - 5000, "new": AT - 10}[name]
        store.journal.fact("chain", {"program": f"acme/{name}", "body": b"%d" % k, "at": at})
    store.journal.fact("chain", {"program": "acme/newest", "body": b"newest", "at": AT})
    await store.close()
    recovered = await recover(database, now=AT, idle_s=600.0)
    assert recovered.open_programs == ("acme/new", "acme/newest")
    assert recovered.chains == (b"2", b"newest")


async def test_a_program_is_written_down_soon_after_its_step_and_once(url: str, database: Database) -> None:
    store = await opened(url)
    asked: list[str] = []

    def chain_of(program: str) -> bytes | None:
        asked.append(program)
        return None if program == "acme/gone" else program.encode()

    snapshots = Snapshots(store.journal, chain_of=chain_of, clock=lambda: AT)
    store.journal.on_step(snapshots.moved)
    for k in range(5):
        store.journal.step(step_record(f"s{k}", "acme/p", AT))
    store.journal.step(step_record("s9", "acme/gone", AT))
    assert await snapshots.chains() == 1
    assert asked == ["acme/p", "acme/gone"]
    assert await snapshots.chains() == 0
    await store.close()
    assert (await recover(database, now=AT, idle_s=600.0)).open_programs == ("acme/p",)


async def test_a_dump_that_fails_does_not_keep_the_others_from_being_written(
    url: str, database: Database
) -> None:
    def broken() -> bytes:
        raise RuntimeError("no bytes today")

    store = await opened(url)
    store.snapshots(forecasts={"bad": broken, "good": lambda: b"good"}, accounts=lambda: {"acme": 1.0})
    await store.close()
    recovered = await recover(database, now=AT, idle_s=600.0)
    assert recovered.forecasts == {"good": b"good"}
    assert recovered.accounts == {"acme": 1.0}


async def test_what_forecasts_learned_is_written_within_moments_and_only_when_it_changed() -> None:
    told: list[object] = []
    known = b"one call"

    def fact(kind: str, row: Mapping[str, object]) -> None:
        if kind == "forecast":
            told.append(row["body"])

    journal = SimpleNamespace(fact=fact)
    snapshots = Snapshots(journal, forecasts={"tools": lambda: known}, chain_s=0.01, state_s=3600.0)
    snapshots.start()

    async def until(number: int) -> None:
        async with asyncio.timeout(30):
            while len(told) < number:
                await asyncio.sleep(0.01)

    await until(1)  # long before the hour is over
    known = b"two calls"
    await until(2)
    await snapshots.stop()
    assert told == [b"one call", b"two calls"]


async def test_a_gateway_starts_while_its_database_is_away() -> None:
    store = await opened("postgresql://nobody@127.0.0.1:1/none")
    Gateway(store.journal).step("acme/p", 0, AT)
    assert store.keys.check("as-a-b", AT) is None
    assert store.figures()["store_up"]() == 0.0
    async with asyncio.timeout(10):
        await store.close(timeout_s=0.3)


async def run_until_killed(url: str, seconds: float) -> list[int]:
    """A gateway's journal in a process of its own, killed without warning; the numbers that it said were written."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "journalling.py"),
        url,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )
    assert process.stdout is not None
    await process.stdout.readline()  # it writes
    await asyncio.sleep(seconds)
    process.kill()
    said = await process.stdout.read()
    await process.wait()
    return [int(line) for line in said.split()[:-1] or [b"0"]]


async def test_after_kill_9_nothing_is_missing_that_was_said_to_be_written(
    url: str, database: Database
) -> None:
    written = await run_until_killed(url, 1.5)
    pieces = await journal_of(database)
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    told = [event for piece in pieces for event, _, _ in piece.told]
    numbers = [int(event.step) for event in told if isinstance(event, ev.StepStarted)]
    assert numbers == list(range(len(numbers)))  # nothing in between is missing
    assert len(numbers) >= written[-1] > 0
    steps = await queries.steps(database, "acme/p", limit=10_000)
    assert len(steps) == len(numbers)
    program: Any = await queries.program(database, "acme/p")
    assert program["steps"] == len(steps)  # the sums are of the same moment
    recovered = await recover(database, now=AT + 1e9, idle_s=1e10)
    assert recovered.open_programs == ("acme/p",)
    await migrations.ready(database)


def test_a_resolver_restored_from_its_chains_knows_the_next_call(tmp_path: Path) -> None:
    """The identity's bytes go through the database unchanged."""

    async def run() -> None:
        url = f"sqlite:///{tmp_path}/x.db"
        store = await opened(url)
        resolver = Resolver()
        first = call_of("fix the parser, please")
        resolved = resolver.resolve(first, tenant="acme", now=AT)
        resolver.replied(
            resolved, ReplyEvidence(items=(Item(role="assistant", digest=hash_of("reply one")),)), AT + 1
        )
        store.snapshots(chain_of=resolver.record)
        store.journal.step(step_record("s", resolved.program_id, AT))
        await store.close()

        again = await opened(url)
        fresh = Resolver()
        assert fresh.restore(again.recovered.chains) == 1
        following = call_of("fix the parser, please", "reply one", "go on")
        assert fresh.resolve(following, tenant="acme", now=AT + 20).program_id == resolved.program_id
        await again.close()

    asyncio.run(run())


async def test_programs_that_were_open_go_on_with_their_time_and_are_no_new_ones(
    url: str, database: Database
) -> None:
    def tell(store: Store) -> Gateway:
        gateway = Gateway(store.journal)
        gateway.restore(store.recovered.lives)
        return gateway

    store = await opened(url)
    first = tell(store)
    first.step("acme/p", 0, AT)  # asks for a tool
    first.step("acme/p", 1, AT + 10.0, gap_s=8.0, tools=())  # a turn is over
    first.step("acme/p", 2, AT + 112.0, gap_s=100.0)
    first.step("acme/left", 0, AT)
    await store.close()  # without a word of their ends

    store = await opened(url, AT + 300.0)
    assert [kept.program for kept in store.recovered.lives] == ["acme/left", "acme/p"]
    kept = store.recovered.lives[-1]
    assert (kept.steps, kept.tool_s, kept.human_s, kept.turn_done) == (3, 8.0, 100.0, False)
    second = tell(store)
    second.step("acme/p", 3, AT + 130.0)
    second.tell(ev.ProgramEnded(program=ProgramId("acme/p")), AT + 133.0)
    second.tell(ev.TimerFired(), AT + 1e5)
    await store.close()
    program = await queries.program(database, "acme/p")
    left = await queries.program(database, "acme/left")
    assert program is not None
    assert left is not None
    assert (program["steps"], program["seconds"]) == (4, 132.0 - 100.0)
    assert (program["tool_s"], program["human_s"]) == (8.0 + 16.0, 100.0)
    assert (left["state"], left["end_reason"], left["ended_at"]) == ("ended", "idle", AT + 2.0)
    (tenant,) = await queries.tenants(database)
    assert tenant["programs"] == 2
