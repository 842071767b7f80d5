"""The commands that read the store, as their users call them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from agentserve.cli import main
from agentserve.config import StoreSettings
from agentserve.core.workflow import LearnedGraph
from agentserve.store.journal import WriteBehind
from tests.store.conftest import Gateway


async def fill(url: str) -> None:
    journal = WriteBehind(StoreSettings(url=url, flush_interval_s=0.02))
    journal.start()
    now = time.time()
    gateway = Gateway(journal)
    gateway.program("acme/[/b]", 1, now - 200)
    gateway.program("acme/one", 3, now - 100)
    gateway.step("other/two", 0, now - 10, tenant="other", workflow="[red]triage\x1b[2J")
    graph = LearnedGraph()
    graph.observe_step("plan", output_tokens=10)
    graph.observe_step("write", previous=("plan",), output_tokens=20, gap_s=1.0)
    graph.observe_end("write")
    journal.fact(
        "graph", {"tenant": "acme", "name": "coder", "graph": "learned", "body": graph.to_bytes(), "at": now}
    )
    declared = json.dumps({"steps": ["plan", "write"]}).encode()
    journal.fact(
        "graph", {"tenant": "acme", "name": "line", "graph": "declared", "body": declared, "at": now}
    )
    assert await journal.flushed()
    await journal.stop()


@pytest.fixture
def store(sqlite_url: str) -> str:
    asyncio.run(fill(sqlite_url))
    return sqlite_url


def said(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    try:
        got = main(argv)
    except SystemExit as left:
        got = int(left.code or 0)
    out, err = capsys.readouterr()
    assert got == status, err
    return out if status == 0 else err


def test_programs_are_listed_and_filtered(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(said(capsys, "programs", "--store", store, "--json"))
    assert [row["id"] for row in rows] == ["other/two", "acme/one", "acme/[/b]"]
    assert [row["state"] for row in rows] == ["live", "ended", "ended"]
    live = json.loads(said(capsys, "programs", "list", "--live", "--json", "--store", store))
    assert [row["id"] for row in live] == ["other/two"]
    assert "acme/one" not in said(capsys, "programs", "--tenant", "other", "--store", store)
    assert "no programs" in said(capsys, "programs", "--search", "%", "--store", store)


def test_what_clients_call_things_cannot_draw_on_the_terminal(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = said(capsys, "programs", "--store", store)
    assert "[red]triage" in out
    assert "\x1b" not in out
    assert "acme/[/b]" in said(capsys, "programs", "show", "acme/[/b]", "--store", store)


def test_a_program_is_shown_with_its_steps_and_reasons(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, "programs", "show", "one", "--store", store, "--decisions")
    for expected in ("acme/one", "ended: told", "git diff", "kept", "Dispatch", "hit"):
        assert expected in shown
    found = json.loads(said(capsys, "programs", "show", "acme/one", "--json", "--store", store))
    assert [step["number"] for step in found["step_list"]] == [0, 1, 2]
    assert "there is no program 'three'" in said(
        capsys, "programs", "show", "three", "--store", store, status=2
    )


def test_a_name_that_several_tenants_use_is_not_guessed(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def two() -> None:
        journal = WriteBehind(StoreSettings(url=sqlite_url, flush_interval_s=0.02))
        journal.start()
        for tenant in ("acme", "other"):
            Gateway(journal).step(f"{tenant}/one", 0, time.time(), tenant=tenant)
        assert await journal.flushed()
        await journal.stop()

    asyncio.run(two())
    told = said(capsys, "programs", "show", "one", "--store", sqlite_url, status=2)
    assert "several tenants have a program 'one'" in told
    assert "acme/one" in told
    assert "there is no program" in said(
        capsys, "programs", "show", "x" * 60_000, "--store", sqlite_url, status=2
    )


def test_a_long_program_is_shown_whole(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(long_one(sqlite_url))
    found = json.loads(said(capsys, "programs", "show", "acme/long", "--json", "--store", sqlite_url))
    assert len(found["step_list"]) == found["steps"] == 1_100


async def long_one(url: str) -> None:
    journal = WriteBehind(StoreSettings(url=url, flush_interval_s=0.02))
    journal.start()
    Gateway(journal).program("acme/long", 1_100, time.time() - 5_000)
    assert await journal.flushed()
    await journal.stop()


def test_graphs_are_drawn(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    learned = said(capsys, "programs", "graph", "coder", "--store", store)
    assert "plan" in learned
    assert "write" in learned
    assert "digraph" in said(capsys, "programs", "graph", "line", "--format", "dot", "--store", store)
    assert "no graph" in said(capsys, "programs", "graph", "nothing", "--store", store, status=2)


def test_tenants_are_listed_with_their_use(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(said(capsys, "tenants", "--store", store, "--json"))
    assert {row["id"]: row["steps"] for row in rows} == {"acme": 4, "other": 1}
    assert "4000" in said(capsys, "tenants", "--store", store)


def test_a_key_is_made_listed_and_revoked(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(
        said(
            capsys,
            "keys",
            "create",
            "--tenant",
            "acme",
            "--scope",
            "read",
            "--expires",
            "1d",
            "--json",
            "--store",
            sqlite_url,
        )
    )
    assert made["key"].startswith(f"as-{made['id']}-")
    listing = said(capsys, "keys", "list", "--store", sqlite_url)
    assert made["id"] in listing
    assert made["key"] not in listing
    assert "revoked" in said(capsys, "keys", "revoke", made["key"], "--store", sqlite_url)
    [row] = json.loads(said(capsys, "keys", "list", "--json", "--store", sqlite_url))
    assert (row["state"], row["scopes"], row["tenant"]) == ("revoked", ["read"], "acme")
    assert "there is no key" in said(capsys, "keys", "revoke", "nobody", "--store", sqlite_url, status=2)


def test_a_key_alone_goes_to_standard_output_so_that_it_can_be_piped(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", "--store", sqlite_url]) == 0
    out, err = capsys.readouterr()
    assert len(out.split()) == 1
    assert "not shown again" in err


def test_the_database_is_upgraded_and_its_state_told(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "from nothing to revision" in said(capsys, "db", "upgrade", "--store", sqlite_url)
    assert "nothing to do" in said(capsys, "db", "upgrade", "--store", sqlite_url)
    told = json.loads(said(capsys, "db", "status", "--json", "--store", sqlite_url))
    assert told["revision"] == told["newest"]
    assert told["rows"]["steps"] == 0


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["programs"], "there is no database"),
        (["tenants"], "there is no database"),
        (["keys", "list"], "there is no database"),
        (["export"], "there is no database"),
        (["db", "status"], "there is no database"),
        (["programs", "--limit", "0"], "--limit is 0"),
        (["export", "-", "--format", "parquet"], "standard output"),
        (["export", "--since", "soon"], "is not a duration"),
        (["keys", "create", "--scope", "root"], "invalid choice"),
        (["keys"], "ACTION"),
    ],
)
def test_what_a_user_did_wrong_is_one_line_and_exit_status_2(
    argv: list[str], expected: str, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = [] if argv == ["keys"] else ["--store", sqlite_url]
    err = said(capsys, *argv, *store, status=2)
    assert expected in err
    assert err.count("\n") == 1


def test_an_export_without_rows_says_of_what_there_are_none(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, none in (("programs", "no program"), ("tools", "no tool call"), ("steps", "no step")):
        assert main(["export", "--what", what, "--tenant", "nobody", "--store", store]) == 0
        assert f"nothing to export: {none} has" in capsys.readouterr().err


def test_a_verb_that_reads_makes_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "programs", "--store", f"sqlite:///{tmp_path}/none.db", status=2)
    assert list(tmp_path.iterdir()) == []
