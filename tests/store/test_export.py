"""What is exported is what `replay` and `forecast evaluate` read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agentserve.cli import main
from agentserve.config import StoreSettings
from agentserve.core import events as ev
from agentserve.core.forecast.evaluation import call_row, program_row
from agentserve.core.ids import ProgramId, TenantId
from agentserve.sim.importers import read
from agentserve.store import export, migrations
from agentserve.store.database import Database
from agentserve.store.journal import WriteBehind
from tests.store.conftest import AT, Gateway


async def collected(database: Database, kind: str, **given: Any) -> list[dict[str, Any]]:
    return [line async for line in export.lines(database, kind, **given)]


async def test_a_program_comes_out_as_it_ran(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    gateway.program("acme/p", 3, AT, gap_s=4.0)
    assert await journal.flushed()
    [line] = await collected(database, "programs")
    assert (line["id"], line["tenant"], line["workflow"], line["start_epoch"]) == (
        "acme/p",
        "acme",
        "coder",
        AT,
    )
    assert [turn["t"] for turn in line["turns"]] == [0.0, 6.0, 12.0]
    assert [turn["llm"] for turn in line["turns"]] == [1.5] * 3  # two seconds, half of one of them queued
    assert [turn["gap"] for turn in line["turns"]] == [4.0, 4.0, None]
    assert [turn["k"] for turn in line["turns"]] == ["human", "tool", "tool"]
    assert line["turns"][0]["tools"] == [["bash", "git diff", None, 4.0, "gap", "clean"]]
    assert line["turns"][2]["tools"][0][5] == "censored"


async def test_an_export_replays(
    database: Database, journal: WriteBehind, gateway: Gateway, tmp_path: Path
) -> None:
    for number in range(4):
        gateway.program(f"acme/{number}", 3, AT + number)
    assert await journal.flushed()
    path = tmp_path / "export.jsonl"
    lines = [export.head("programs"), *await collected(database, "programs")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(path, strict=True)
    assert (found.format, found.bad, len(found.workload.programs)) == ("agent_programs", 0, 4)
    plan = found.workload.programs[0]
    assert (plan.tenant, plan.workflow, len(plan.steps)) == ("acme", "coder", 3)
    assert plan.steps[0].tools[0].name == "bash"
    assert plan.steps[0].tools[0].seconds == pytest.approx(5.0)
    row = program_row(lines[1])
    assert [step.input_tokens for step in row.steps] == [1000] * 3


async def test_tool_calls_come_out_as_the_forecasts_judge_reads_them(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    gateway.program("acme/p", 2, AT)
    q, acme = ProgramId("acme/q"), TenantId("acme")
    tool = ev.PendingTool(id="m", name="search", kind="tool", timeout_s=9.0, exact_hash=-5)
    gateway.tell(ev.ProgramDeclared(program=q, tenant=acme), AT)
    gateway.tell(ev.ToolStarted(program=q, tool=tool), AT + 1)
    gateway.tell(ev.ToolEnded(program=q, tool_id="m", duration_s=2.5, ok=False), AT + 3.5)
    assert await journal.flushed()
    lines = await collected(database, "tools")
    rows = [call_row(line) for line in lines]
    assert [(r.call.name, r.seconds, r.censored) for r in rows] == [
        ("search", 2.5, False),
        ("bash", 5.0, False),
        ("bash", pytest.approx(0.0), True),
    ] or [(r.call.name, r.censored) for r in rows] == [("search", False), ("bash", False), ("bash", True)]
    assert [line["measured"] for line in lines] == [True, False, False]
    assert (rows[0].call.timeout_s, rows[0].tenant, rows[0].program) == (9.0, "acme", "acme/q")
    assert rows[1].call.argument_class == "git diff"
    assert lines[0]["ok"] is False


async def test_an_export_pages_through_more_rows_than_it_holds_at_once(
    database: Database, journal: WriteBehind, gateway: Gateway
) -> None:
    for number in range(export.PAGE + 30):
        gateway.step(f"acme/{number}", 0, AT + number // 7)  # many begin at the same moment
    assert await journal.flushed(30)
    steps = await collected(database, "steps")
    assert len({row["id"] for row in steps}) == len(steps) == export.PAGE + 30
    assert [row["arrived_at"] for row in steps] == sorted(row["arrived_at"] for row in steps)
    assert len(await collected(database, "steps", since=AT + 50)) == export.PAGE + 30 - 350
    assert await collected(database, "steps", tenant="nobody") == []


async def filled(url: str) -> None:
    database = Database(url)
    await migrations.upgrade(database)
    await database.close()
    journal = WriteBehind(StoreSettings(url=url, flush_interval_s=0.02), clock=lambda: AT + 3600)
    journal.start()
    for number in range(3):
        Gateway(journal).program(f"acme/{number}", 3, AT)
    assert await journal.flushed()
    await journal.stop()


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
@pytest.mark.parametrize("what", export.KINDS)
def test_each_format_holds_every_row(sqlite_url: str, tmp_path: Path, name: str, what: str) -> None:
    import asyncio

    asyncio.run(filled(sqlite_url))
    path = tmp_path / name
    assert main(["export", str(path), "--what", what, "--store", sqlite_url]) == 0
    expected = 3 if what == "programs" else 9
    if name.endswith(".parquet"):
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(path)
        assert table.num_rows == expected
        return
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "rt") as stream:
        lines = [json.loads(line) for line in stream]
    assert lines[0]["source"] == "agentserve"
    assert len(lines) == expected + 1
