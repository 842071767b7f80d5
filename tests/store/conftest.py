"""Databases to test on: a SQLite file always, and a PostgreSQL cluster of our own where its server is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentserve.config import StoreSettings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.decisions import AnyDecision
from agentserve.core.events import AnyEvent
from agentserve.core.facts import AnyFact
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId, WorkflowId
from agentserve.core.lives import KeptLife
from agentserve.ports import StepRecord
from agentserve.store import migrations
from agentserve.store.database import Database
from agentserve.store.folding import Kept, Record, Told
from agentserve.store.journal import WriteBehind
from agentserve.telemetry import Recorder

AT = 1_700_000_000.0  # when everything happens
HOW_TO = "PostgreSQL's server is not installed here; `apt-get install postgresql` provides it"


class Cluster:
    """A private PostgreSQL server in a temporary directory, run by a user that is not root."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self.home = Path(tempfile.mkdtemp(prefix="agentserve-pg-", dir="/tmp"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self.home, "postgres", "postgres")
            self._as = ["runuser", "-u", "postgres", "--"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._run("initdb", "-D", str(self.home / "data"), "-A", "trust", "-U", "agentserve", "-N")
        self.start()

    def _run(self, binary: str, *arguments: str) -> None:
        command = [*self._as, str(self._binaries / binary), *arguments]
        subprocess.run(
            command,
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.home,
        )

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.home} -c fsync=off"
        data, log = str(self.home / "data"), str(self.home / "log")
        self._run("pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.home / "data"), "-m", "immediate", "-w", "stop")

    @contextlib.contextmanager
    def guarding(self, role: str) -> Iterator[None]:
        """Meanwhile this role has to say its password; the others are trusted."""
        rules = self.home / "data" / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n{before}")
        self._run("pg_ctl", "-D", str(self.home / "data"), "reload")
        try:
            yield
        finally:
            rules.write_text(before)
            self._run("pg_ctl", "-D", str(self.home / "data"), "reload")

    def url(self) -> str:
        """An empty database: the same one, emptied, for making them is slow."""
        empty = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        on = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "agentserve")
        self._run("psql", *on, "-q", "-d", "postgres", "-c", empty)
        return f"postgresql://agentserve@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The server, or a skip that says how to get it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip(HOW_TO)
    cluster = Cluster(found[-1].parent)
    yield cluster
    cluster.stop()
    shutil.rmtree(cluster.home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.url()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """A database with our tables."""
    database = Database(url)
    await migrations.upgrade(database)
    yield database
    await database.close()


def step_record(step: str, program: str, at: float, **given: Any) -> StepRecord:
    """A finished step as the gateway journals it."""
    return StepRecord(
        step=step,
        program=program,
        tenant=given.pop("tenant", "acme"),
        protocol="chat",
        arrived_at=at,
        **{
            "model": "m",
            "dispatched_at": at + 0.5,
            "queue_s": 0.5,
            "first_byte_at": at + 0.75,
            "ended_at": at + 2.0,
            "engine": "e0",
            "status": 200,
            "outcome": "finished",
            "prompt_tokens": 1000,
            "output_tokens": 50,
            "cached_tokens": 800,
            "workflow": "coder",
            "tools": ("bash",),
            "relation": "continues",
            **given,
        },
    )


class Collected:
    """A journal that only collects, for a test to write as it likes."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.records: list[Kept] = []

    def event(self, event: AnyEvent, now: float, decisions: list[AnyDecision]) -> None:
        self.told.append((event, now, decisions))

    def step(self, record: StepRecord) -> None:
        self.records.append(record)

    def known(self, fact: AnyFact) -> None:
        self.records.append(fact)

    def fact(self, kind: str, row: Mapping[str, Any]) -> None:
        self.records.append(Record(kind, row))


class Gateway:
    """Says to a journal what a gateway would say of programs that call `bash` between their steps."""

    def __init__(self, journal: WriteBehind | Collected) -> None:
        self.journal = journal
        self._teller = Recorder()
        self._teller.on_fact(journal.known)

    def restore(self, lives: Iterable[KeptLife]) -> None:
        """It takes up what an earlier one left open."""
        self._teller.restore(lives)

    def tell(self, event: AnyEvent, now: float, decisions: Sequence[AnyDecision] = ()) -> None:
        """As the driver: the journal hears of the event, and of what the story makes of it."""
        self.journal.event(event, now, list(decisions))
        self._teller.watch(event, now, decisions)

    def step(self, program: str, number: int, at: float, *, tenant: str = "acme", **given: Any) -> None:
        """One step of a program, 2 s long, at this time."""
        step, owner, engine = StepId(f"{program}#{number}"), ProgramId(program), EngineId("e0")
        tell = self.tell
        arrived = ev.StepArrived(
            step=step,
            program=owner,
            tenant=TenantId(tenant),
            prompt_tokens=1000,
            workflow=WorkflowId("coder"),
            relation="new" if number == 0 else "continues",
            returned=(f"c{number - 1}",) if number else (),
        )
        tell(arrived, at, [do.Dispatch(step=step, engine=engine, reason="kept" if number else "free")])
        tell(ev.StepStarted(step=step), at + 0.75)
        tool = ev.PendingTool(id=f"c{number}", name="bash", argument_class="git diff")
        finished = ev.StepFinished(
            step=step, prompt_tokens=1000, output_tokens=50, cached_tokens=800, tools=(tool,)
        )
        pin = do.Pin(program=owner, engine=engine, tokens=1050, until=at + 60, reason="worth")
        tell(finished, at + 2.0, [pin])
        self.journal.step(step_record(step, program, at, tenant=tenant, index=number, **given))

    def program(self, program: str, steps: int, at: float, *, gap_s: float = 5.0, **given: Any) -> None:
        """A whole program, ended by its client."""
        for number in range(steps):
            self.step(program, number, at, **given)
            at += 2.0 + gap_s
        self.tell(ev.ProgramEnded(program=ProgramId(program)), at)


@pytest.fixture
async def journal(database: Database, url: str) -> AsyncIterator[WriteBehind]:
    """A journal that writes to the database."""
    journal = WriteBehind(StoreSettings(url=url, flush_interval_s=0.02), clock=lambda: AT + 3600)
    journal.start()
    yield journal
    await journal.stop()


@pytest.fixture
def gateway(journal: WriteBehind) -> Gateway:
    return Gateway(journal)


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    """Wait for another thread's work."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
