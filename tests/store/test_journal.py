"""Written behind, in order, once; and when the database is slow, away or picky the requests do not notice."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

from agentserve.config import StoreSettings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits
from agentserve.core.foresight import Naive
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler
from agentserve.store import queries
from agentserve.store.database import Database
from agentserve.store.folding import Fold, Told
from agentserve.store.journal import REST, Pace, WriteBehind
from agentserve.store.recovery import journal_of
from agentserve.store.summaries import Summaries
from agentserve.store.writing import Writer
from tests.store.conftest import AT, Cluster, Gateway, step_record, until

ACME, P, S = TenantId("acme"), ProgramId("acme/p"), StepId("s")
E0, E1 = EngineId("e0"), EngineId("e1")


def now() -> float:
    return AT + 3600.0


async def test_a_program_is_kept_with_its_steps_tools_pins_and_reasons(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    gateway.program("acme/p", 3, AT)
    assert await journal.flushed()
    program = await queries.program(database, "acme/p")
    assert program is not None
    assert (program["steps"], program["prompt_tokens"], program["cached_tokens"]) == (3, 3000, 2400)
    assert (program["state"], program["end_reason"], program["workflow"]) == ("ended", "told", "coder")
    assert program["opened_at"] == AT
    assert program["seconds"] == pytest.approx(16.0)  # 3 steps of 2 s, 2 gaps of 5 s
    steps = await queries.steps(database, "acme/p")
    assert [s["number"] for s in steps] == [0, 1, 2]
    assert steps[0]["tools"] == ["bash"]
    assert steps[0]["queue_s"] == pytest.approx(0.5)
    tools = await queries.tool_calls(database, "acme/p")
    assert [(t["name"], t["argument_class"], t["censored"]) for t in tools] == [
        ("bash", "git diff", False),
        ("bash", "git diff", False),
        ("bash", "git diff", True),  # the program ended without its result
    ]
    assert tools[0]["seconds"] == pytest.approx(5.0)
    pins = await queries.pins(database, program_id="acme/p")
    assert [p["outcome"] for p in pins] == ["ended", "hit", "hit"]
    assert [p["saved_s"] for p in pins] == [0.0, 0.1, 0.1]  # of 1050 tokens kept, 800 were found
    decided = await queries.decisions(database, program_id="acme/p")
    assert [d["kind"] for d in decided] == ["Dispatch", "Pin"] * 3
    assert decided[2]["reason"] == "kept"
    assert decided[1]["until"] == pytest.approx(AT + 60)
    [tenant] = await queries.tenants(database)
    assert (tenant["id"], tenant["programs"], tenant["steps"]) == ("acme", 1, 3)
    [workflow] = await queries.workflows(database)
    assert (workflow["name"], workflow["programs"], workflow["steps"]) == ("coder", 1, 3)


async def test_sums_grow_over_batches_and_a_program_that_comes_back_is_live_again(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    gateway.program("acme/p", 2, AT)
    assert await journal.flushed()
    gateway.step("acme/p", 2, AT + 100)
    assert await journal.flushed()
    program = await queries.program(database, "acme/p")
    assert program is not None
    assert (program["steps"], program["prompt_tokens"]) == (3, 3000)
    assert program["state"] == "live"
    assert program["ended_at"] is None
    assert program["opened_at"] == AT


async def test_engines_are_kept_as_they_were_last_seen(database: Database, journal: WriteBehind) -> None:
    journal.event(ev.EngineBack(engine=E0), AT, [])
    journal.event(ev.EngineReported(engine=E0, kv_tokens=9000, running=3, models=("m",)), AT + 1, [])
    journal.event(ev.EngineLost(engine=E1, reason="refused"), AT + 2, [])
    assert await journal.flushed()
    journal.event(ev.EngineReported(engine=E0, waiting=2), AT + 3, [])
    assert await journal.flushed()
    e0, e1 = await queries.engines(database)
    assert (e0["state"], e0["kv_tokens"], e0["running"], e0["waiting"]) == ("up", 9000, 3, 2)
    assert e0["models"] == ["m"]
    assert (e1["state"], e1["reason"]) == ("lost", "refused")


async def test_the_journal_replays_to_the_same_decisions(database: Database, journal: WriteBehind) -> None:
    def fresh() -> Scheduler:
        board = Board(foresight=Naive(), limits=Limits())
        return Scheduler(board, make_policy("agentserve", board))

    scheduler = fresh()
    script: list[tuple[ev.AnyEvent, float]] = [
        (ev.EngineBack(engine=E0), 0.0),
        (ev.EngineReported(engine=E0, kv_tokens=10_000), 0.1),
    ]
    for p in range(6):
        at = 1.0 + p
        step, prefix = StepId(f"{p}"), (ev.Segment(2**63 + p, 300),)
        arrived = ev.StepArrived(
            step=step, program=ProgramId(f"p{p}"), tenant=ACME, prompt_tokens=4000, prefix=prefix, role=-p
        )
        script.append((arrived, at))
        script.append((ev.StepFinished(step=step, prompt_tokens=4000, output_tokens=10), at + 20))
    said = []
    for event, now in sorted(script, key=lambda pair: pair[1]):
        decided = scheduler.handle(event, now)
        journal.event(event, now, decided)
        said.append(decided)
    assert await journal.flushed()
    again = fresh()
    told = [item for piece in await journal_of(database) for item in piece.told]
    assert len(told) == len(script)
    assert [again.handle(event, now) for event, now, _ in told] == said
    assert [decided for _, _, decided in told] == said


async def test_the_pieces_of_a_run_are_numbered_without_holes(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    for k in range(5):
        gateway.step("acme/p", k, AT + 10 * k)
        assert await journal.flushed()
    pieces = await journal_of(database)
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    assert len(pieces) >= 5
    assert sum(len(piece.told) for piece in pieces) == 15


async def test_a_batch_that_is_written_twice_counts_once(database: Database) -> None:
    """The commit went through and its confirmation was lost."""
    fold = Fold()
    writer = Writer(database, "w")
    told: list[Told] = [(ev.ProgramDeclared(program=P, tenant=ACME), AT, [])]
    folded = fold.fold(told, [step_record("s", "acme/p", AT)])
    await writer.write(folded, 1, 0, AT)
    await writer.write(folded, 1, 0, AT)
    program = await queries.program(database, "acme/p")
    assert program is not None
    assert program["steps"] == 1
    assert (await queries.counts(database, ["batches"])) == {"batches": 1}


async def test_a_program_that_is_declared_is_kept_with_its_workflow_before_its_first_step(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    """A gateway that is killed then must not lose what the program is of."""
    gateway.tell(ev.ProgramDeclared(program=P, tenant=ACME, workflow=WorkflowId("report")), AT)
    assert await journal.flushed()
    program = await queries.program(database, "acme/p")
    assert program is not None
    assert (program["state"], program["workflow"]) == ("live", "report")


async def test_a_row_that_the_database_refuses_does_not_take_others_with_it(database: Database) -> None:
    nameless: list[dict[str, Any]] = [{}, {"model": None}, {}]  # a column that must not be null
    folded = Fold().fold(
        [], [step_record(f"s{i}", "acme/p", AT, **given) for i, given in enumerate(nameless)]
    )
    refused = await Writer(database, "w").write_apart(folded, 1, 0, AT)
    assert list(refused) == ["steps"]
    assert len(refused["steps"]) == 1
    assert [s["id"] for s in await queries.steps(database, "acme/p")] == ["s0", "s2"]


async def test_the_journal_goes_on_after_a_row_that_is_refused(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    journal.step(step_record("bad", "acme/p", AT, model=None))
    gateway.step("acme/p", 0, AT)
    assert await journal.flushed(30)
    assert journal.lost["steps", "refused"] == 1
    assert [s["id"] for s in await queries.steps(database, "acme/p")] == ["acme/p#0"]


async def test_what_makes_no_sense_is_left_out_and_counted(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    journal.step(step_record("s", "acme/p", AT, index="first", role=None))
    journal.fact("account", {"tenant": "acme"})
    journal.fact("engine", {"id": None, "state": object()})
    journal.event(None, AT, [])  # type: ignore[arg-type]  # no event
    journal.event(ev.StepStarted(step=S), AT, [object()])  # type: ignore[list-item]  # no decision
    prefix = (ev.Segment(2**70, 5),)
    arrived = ev.StepArrived(
        step=StepId("x"), program=ProgramId("acme/q"), tenant=ACME, prompt_tokens=1, prefix=prefix
    )
    journal.event(arrived, AT, [])
    gateway.step("acme/p", 0, AT)
    assert await journal.flushed(30)
    assert journal.up
    assert {kind for kind, _ in journal.lost} >= {"step", "account", "event"}
    assert [s["id"] for s in await queries.steps(database, "acme/p")] == ["acme/p#0"]
    [piece] = await journal_of(database)
    assert {type(event).__name__ for event, _, _ in piece.told} == {
        "StepArrived",
        "StepStarted",
        "StepFinished",
    }


async def test_whatever_clients_call_things_can_be_stored(database: Database, journal: WriteBehind) -> None:
    odd = "acme/" + "x" * 5000
    for number, program in enumerate(
        ("acme/nul\0", "acme/\ud800", odd, odd + "y", "acme/'; drop table steps")
    ):
        journal.step(
            step_record(
                f"s{number}", program, AT, model="m\0" * 2000, prompt_tokens=2**80, error="\0", role=2**64 - 1
            )
        )
    assert await journal.flushed()
    assert not journal.lost
    counted = await queries.counts(database, ["steps", "programs"])
    assert counted == {"steps": 5, "programs": 5}


def test_when_the_queue_is_full_the_oldest_detail_goes_first_and_is_counted(sqlite_url: str) -> None:
    journal = WriteBehind(StoreSettings(url=sqlite_url, queue_rows_max=10))  # never started
    for k in range(8):
        journal.event(ev.StepStarted(step=StepId(f"s{k}")), float(k), [])
    for k in range(6):
        journal.step(step_record(f"s{k}", "acme/p", AT))
    assert journal.queued == 10
    assert journal.lost == {("event", "overflow"): 4}
    for k in range(6, 14):
        journal.step(step_record(f"s{k}", "acme/p", AT))
    assert journal.lost == {("event", "overflow"): 8, ("step", "overflow"): 4}
    assert journal.queued == 10


async def test_what_was_lost_to_overflow_is_noted_in_the_journal(sqlite_url: str) -> None:
    journal = WriteBehind(StoreSettings(url=sqlite_url, queue_rows_max=10, flush_interval_s=0.02), clock=now)
    for k in range(25):
        journal.event(ev.StepStarted(step=StepId(f"s{k}")), float(k), [])
    journal.start()
    assert await journal.flushed()
    await journal.stop()
    database = Database(sqlite_url)
    [piece] = await journal_of(database)
    assert piece.dropped == 15
    kept = [ev.StepStarted(step=StepId(f"s{k}")) for k in range(15, 25)]
    assert [event for event, _, _ in piece.told] == kept
    await database.close()


async def test_facts_of_which_the_newest_counts_do_not_fill_the_queue(
    database: Database, journal: WriteBehind
) -> None:
    for k in range(1000):
        journal.fact("chain", {"program": "acme/p", "body": b"%d" % k, "at": AT + k})
        journal.fact("account", {"tenant": "acme", "service": float(k), "at": AT + k})
    assert journal.queued <= 2
    assert await journal.flushed()
    async with database.reading() as connection:
        assert await connection.scalar(text("SELECT body FROM chains")) == b"999"
        assert await connection.scalar(text("SELECT service FROM accounts")) == 999.0


async def test_prompts_are_kept_only_when_asked_for_cut_and_redacted(sqlite_url: str) -> None:
    prompt = {"step": "s", "program": "acme/p", "at": AT, "text": "my key is SECRET " + "é" * 100}
    for keep in (False, True):
        settings = StoreSettings(
            url=sqlite_url, flush_interval_s=0.02, keep_prompts=keep, prompt_bytes_max=32
        )
        journal = WriteBehind(settings, clock=now, redact=lambda text: text.replace("SECRET", "***"))
        journal.start()
        journal.fact("prompt", prompt)
        journal.fact("response", {"id": f"r{keep}", "tenant": "acme", "at": AT, "output": "text"})
        assert await journal.flushed()
        await journal.stop()
        database = Database(sqlite_url)
        async with database.reading() as connection:
            kept = (await connection.execute(text("SELECT text, cut_bytes FROM prompts"))).all()
        counted = await queries.counts(database, ["notes"])
        await database.close()
        if keep:
            [(kept_text, cut)] = kept
            assert kept_text.startswith("my key is *** é")
            assert len(kept_text.encode()) <= 32
            assert cut > 0
            assert counted == {"notes": 1}
        else:
            assert kept == []
            assert counted == {"notes": 0}


async def test_stopping_writes_what_is_left(sqlite_url: str) -> None:
    journal = WriteBehind(StoreSettings(url=sqlite_url, flush_interval_s=60.0, batch_rows_max=7), clock=now)
    journal.start()
    gateway = Gateway(journal)
    await until(lambda: journal.up)
    for k in range(50):
        gateway.step("acme/p", k, AT + 10 * k)
    await journal.stop()
    assert not journal.lost
    database = Database(sqlite_url)
    assert len(await queries.steps(database, "acme/p")) == 50
    await database.close()


async def test_stopping_does_not_wait_for_ever_for_a_database_that_is_away() -> None:
    journal = WriteBehind(StoreSettings(url="postgresql://nobody@127.0.0.1:1/none"))
    journal.start()
    Gateway(journal).step("acme/p", 0, AT)
    async with asyncio.timeout(10):
        await journal.stop(timeout_s=0.3)
    assert not journal.up
    assert (
        sum(journal.lost.values()) == 6
    )  # three events, the step, and that a program began and a pin was made


async def test_a_fact_in_the_batch_that_cannot_be_written_is_late_and_then_lost(
    database: Database, journal: WriteBehind
) -> None:
    await until(lambda: journal.up)
    async with database.begin() as connection:
        await connection.execute(text("DROP TABLE chains"))  # no row's fault: it is tried for ever
    journal.fact("chain", {"program": "acme/p", "body": b"x", "at": AT})
    await until(lambda: not journal.up)
    assert journal.lag_s > 0
    await journal.stop(timeout_s=0.3)
    assert journal.lost == {("row", "stopped"): 1}


async def test_a_database_that_was_stopped_is_caught_up_with_when_it_is_back(cluster: Cluster) -> None:
    url = cluster.url()
    database = Database(url)
    from agentserve.store import migrations

    await migrations.upgrade(database)
    journal = WriteBehind(StoreSettings(url=url, flush_interval_s=0.02), clock=now)
    journal.start()
    gateway = Gateway(journal)
    gateway.step("acme/p", 0, AT)
    assert await journal.flushed()
    await database.close()
    cluster.stop()
    try:
        for k in range(1, 20):
            gateway.step("acme/p", k, AT + 10 * k)
        await until(lambda: not journal.up)
        assert journal.queued > 0
        assert journal.lag_s > 0
    finally:
        cluster.start()
    assert await journal.flushed(30)
    assert not journal.lost
    assert journal.up
    steps = await queries.steps(database, "acme/p")
    assert [s["number"] for s in steps] == list(range(20))
    program: Any = await queries.program(database, "acme/p")
    assert program["steps"] == 20
    await journal.stop()
    await database.close()


async def test_a_driver_time_that_is_not_of_the_epoch_is_shifted(sqlite_url: str) -> None:
    journal = WriteBehind(StoreSettings(url=sqlite_url, flush_interval_s=0.02), clock=now, clock_offset_s=AT)
    journal.start()
    dispatch = do.Dispatch(step=S, engine=E0, reason="free")
    arrived = ev.StepArrived(step=S, program=P, tenant=ACME, prompt_tokens=1)
    Gateway(journal).tell(arrived, 7.0, [dispatch])
    assert await journal.flushed()
    await journal.stop()
    database = Database(sqlite_url)
    program: Any = await queries.program(database, "acme/p")
    assert program["opened_at"] == AT + 7.0
    [decision] = await queries.decisions(database)
    assert (decision["at"], decision["program"]) == (AT + 7.0, "acme/p")
    [piece] = await journal_of(database)
    assert piece.told[0][1] == 7.0  # the journal itself keeps the scheduler's own time
    await database.close()


def settled(arriving_per_s: float, *, rows_max: int, batch_rows: int, took_s: float) -> list[int]:
    """How many rows wait after each of many batches, when so many come all the time."""
    pace, waiting, seen = Pace(rows_max), float(batch_rows), []
    for _ in range(400):
        waiting = max(waiting - batch_rows, 0.0) + arriving_per_s * took_s
        waiting += arriving_per_s * pace.rest_s(took_s, int(waiting))
        seen.append(int(waiting))
    return seen


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_load_that_leaves_little_time_to_rest_does_not_pile_up(share: float) -> None:
    batch_rows, took_s = 1_000, 0.3
    seen = settled(share * batch_rows / took_s, rows_max=50_000, batch_rows=batch_rows, took_s=took_s)
    assert max(seen) < 10 * batch_rows
    assert max(seen[-100:]) < 5 * batch_rows


def test_a_backlog_that_shrinks_is_written_with_rests() -> None:
    pace, took_s = Pace(50_000), 0.1
    rests = [pace.rest_s(took_s, waiting) for waiting in range(25_000, 1_000, -1_000)]
    assert all(later >= earlier for earlier, later in pairwise(rests))
    assert rests[-1] > 0.9 * REST * took_s


def test_a_full_queue_is_written_without_rests() -> None:
    assert Pace(50_000).rest_s(0.1, 50_000) == 0.0


async def test_tools_that_ran_beside_one_another_held_a_program_up_once(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    p, t, e0 = ProgramId("acme/p"), TenantId("acme"), EngineId("e0")
    tools = tuple(ev.PendingTool(id=name, name=name) for name in ("bash", "read"))
    sent = [do.Dispatch(step=StepId("a"), engine=e0)]
    gateway.tell(ev.StepArrived(step=StepId("a"), program=p, tenant=t, prompt_tokens=10), AT, sent)
    gateway.tell(ev.StepFinished(step=StepId("a"), prompt_tokens=10, output_tokens=1, tools=tools), AT + 1.0)
    back = ev.StepArrived(step=StepId("b"), program=p, tenant=t, prompt_tokens=20, returned=("bash", "read"))
    gateway.tell(back, AT + 7.0, [do.Dispatch(step=StepId("b"), engine=e0)])
    gateway.tell(ev.StepFinished(step=StepId("b"), prompt_tokens=20, output_tokens=1, final=True), AT + 8.0)
    assert await journal.flushed()
    told = await Summaries(database).summary("acme/p")
    assert told is not None
    assert [(tool.name, tool.seconds) for tool in told.tools] == [("bash", 6.0), ("read", 6.0)]
    assert told.tool_s == 6.0
