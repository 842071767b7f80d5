"""The store's two bad days, with the real gateway under load. By hand:

    python -m tests.scenarios.store_outages kill [--postgres]      the gateway is killed and started again
    python -m tests.scenarios.store_outages away [--seconds 60]    PostgreSQL is stopped meanwhile

Agents hold conversations without a name in them, call a tool between steps, and try again when the gateway is gone.
`away` compares the time of steps while the database is away with that before and after, the two pooled, so that a
machine that grows slower or faster meanwhile does not decide; conversations begin anew before they grow long, so that
steps are alike all the time. Prints figures as JSON; exit status 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from agentserve.store import migrations, queries
from agentserve.store.database import Database
from tests.scenarios.stage import AGENTSERVE, Process, ask_json, emulated, free_port, started
from tests.store.conftest import Cluster

TOOLS = [
    {"type": "function", "function": {"name": "bash", "parameters": {"type": "object", "properties": {}}}}
]
LOST_S_MAX = 1.0
MESSAGES_MAX = 16  # of a conversation, where steps are to be alike all the time
SETTLES_S = 3.0  # after the database came back, before it counts as being there
P99_RATIO_MAX = 1.05  # held to where there are enough steps to tell
SECONDS_TELLING = 60.0


@dataclass(slots=True)
class Seen:
    """What the agents saw: when each step ended and how long it took, and what failed for good."""

    steps: list[tuple[float, float]] = field(default_factory=list)
    retries: int = 0
    failures: list[str] = field(default_factory=list)

    def latency_ms(self, share: float, *spans: tuple[float, float]) -> float:
        took = sorted(
            s for at, s in self.steps if any(since <= at - s and at < until for since, until in spans)
        )
        return round(took[min(int(len(took) * share), len(took) - 1)] * 1e3, 1) if took else float("nan")


async def agent(number: int, port: int, until: float, seen: Seen, *, messages_max: int | None = None) -> None:
    """One conversation that grows; its opener is its own and no header says whose it is."""
    rng = random.Random(number)
    messages: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while time.time() < until:
            if not messages or (messages_max is not None and len(messages) > messages_max):
                messages = [{"role": "user", "content": f"task {number}: {rng.random()}"}]
            body = {"model": "emulated", "messages": messages, "max_tokens": 12, "tools": TOOLS}
            began = time.time()
            try:
                reply = await client.post("/v1/chat/completions", json=body)
            except httpx.HTTPError:
                seen.retries += 1
                await asyncio.sleep(0.2)
                continue
            if reply.status_code != 200:
                seen.failures.append(f"{reply.status_code} {reply.text[:120]}")
                await asyncio.sleep(0.5)
                continue
            seen.steps.append((time.time(), time.time() - began))
            message = reply.json()["choices"][0]["message"]
            messages.append(
                {k: v for k, v in message.items() if k in ("role", "content", "tool_calls") and v}
            )
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            calls = message.get("tool_calls") or ()
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
            if not calls:
                messages.append({"role": "user", "content": f"go on, {rng.random()}"})


@contextlib.asynccontextmanager
async def serving(port: int, engine: int, url: str, folder: Path) -> AsyncIterator[Process]:
    """The gateway on a port of our choice, so that a second one can take the place of the first."""
    command = [AGENTSERVE, "up", "--port", str(port), "--log-level", "warning", "--store", url]
    command += ["--engine", f"http://127.0.0.1:{engine}"]
    async with started(command, port, folder / "gateway.log") as process:
        while (await ask_json(port, "/readyz"))[0] != 200:
            await asyncio.sleep(0.1)
        yield process


async def holes(database: Database) -> int:
    """Pieces of the journal that are missing, over all runs."""
    query = "SELECT writer, count(*) AS n, max(number) AS last FROM batches GROUP BY writer"
    async with database.reading() as connection:
        return sum(int(row.last) - int(row.n) for row in await connection.execute(text(query)))


async def forecasts_age_s(url: str, at: float) -> float:
    """How much older than `at` the kept tool forecasts are: what was learned in that time, the next gateway lacks."""
    database = Database(url)
    async with database.reading() as connection:
        written = await connection.scalar(text("SELECT at FROM forecasts WHERE name = 'returns'"))
    await database.close()
    return round(at - float(written), 2) if written else float("inf")


async def kill(args: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    """`kill -9` under load, and a new gateway on the same store."""
    seen = Seen()
    ages: list[float] = []
    port = free_port()
    async with emulated(folder, "--time-scale", "20") as engine, asyncio.TaskGroup() as group:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def gateways() -> float:
            async with serving(port, engine.port, url, folder) as first:
                ready.set_result(None)
                await asyncio.sleep(args.seconds / 2)
                first.popen.send_signal(signal.SIGKILL)
                at = time.time()
                await first.popen.wait()
            ages.append(await forecasts_age_s(url, at))
            async with serving(port, engine.port, url, folder):
                await asyncio.gather(*agents)
            return at

        running = group.create_task(gateways())
        await ready
        until = time.time() + args.seconds + 8
        agents = [group.create_task(agent(n, port, until, seen)) for n in range(args.agents)]
    killed_at = running.result()
    database = Database(url)
    programs = [row for row in await queries.programs(database, limit=10_000) if row["steps"]]
    acknowledged = sum(1 for at, _ in seen.steps if at < killed_at - LOST_S_MAX)
    async with database.reading() as connection:
        kept = await connection.scalar(
            text("SELECT count(*) FROM steps WHERE outcome = 'finished' AND ended_at < :at"),
            {"at": killed_at - LOST_S_MAX},
        )
    missing = await holes(database)
    forecasts = (await queries.counts(database, ["forecasts"]))["forecasts"]
    await database.close()
    out = {
        "agents": args.agents,
        "programs": len(programs),
        "steps": len(seen.steps),
        "acknowledged_a_second_before_the_kill": acknowledged,
        "of_those_kept": int(kept or 0),
        "journal_pieces_missing": missing,
        "forecasts_kept": forecasts,
        "tool_forecasts_older_than_the_kill_s": ages[0],
        "retries": seen.retries,
        "failures": seen.failures[:5],
    }
    out["ok"] = len(programs) == args.agents and not missing and out["of_those_kept"] >= acknowledged
    out["ok"] = out["ok"] and ages[0] <= LOST_S_MAX
    return out


async def away(args: argparse.Namespace, cluster: Cluster, folder: Path) -> dict[str, Any]:
    """PostgreSQL stops, stays away, comes back; nobody but the journal notices."""
    url = cluster.url()
    database = Database(url)
    await migrations.upgrade(database)
    await database.close()
    seen = Seen()
    port = free_port()
    async with emulated(folder, "--time-scale", "20") as engine, serving(port, engine.port, url, folder):
        start = time.time() + 5  # warm
        until = start + args.seconds * 2 + SETTLES_S + 3
        async with asyncio.TaskGroup() as group:
            for number in range(args.agents):
                group.create_task(agent(number, port, until, seen, messages_max=MESSAGES_MAX))
            await asyncio.sleep(start + args.seconds / 2 - time.time())
            stopping_at = time.time()
            await asyncio.to_thread(cluster.stop)
            stopped_at = time.time()
            await asyncio.sleep(args.seconds)
            _, figures = await ask_json(port, "/metrics")
            back_at = time.time()
            await asyncio.to_thread(cluster.start)
            there_at = time.time() + SETTLES_S
        caught_up_s = await until_caught_up(port)
    database = Database(url)
    async with database.reading() as connection:
        kept = int(
            await connection.scalar(text("SELECT count(*) FROM steps WHERE outcome = 'finished'")) or 0
        )
    missing = await holes(database)
    await database.close()
    there, gone = ((start, stopping_at), (there_at, there_at + args.seconds / 2)), (stopped_at, back_at)
    out: dict[str, Any] = {
        "seconds_away": args.seconds,
        "steps": len(seen.steps),
        "steps_kept": kept,
        "failures": seen.failures[:5],
        "retries": seen.retries,
        "p50_ms_there_and_away": [seen.latency_ms(0.5, *there), seen.latency_ms(0.5, gone)],
        "p99_ms_there_and_away": [seen.latency_ms(0.99, *there), seen.latency_ms(0.99, gone)],
        "p99_ms_before_and_after": [seen.latency_ms(0.99, span) for span in there],
        "queued_rows_at_the_end_of_it": gauge(figures, "agentserve_store_queue_rows"),
        "caught_up_s": caught_up_s,
        "journal_pieces_missing": missing,
    }  # fmt: skip
    out["ok"] = not seen.failures and not seen.retries and kept == len(seen.steps) and not missing
    if args.seconds >= SECONDS_TELLING:
        at_home, abroad = out["p99_ms_there_and_away"]
        out["ok"] = out["ok"] and abroad <= P99_RATIO_MAX * at_home
    return out


async def until_caught_up(port: int) -> float:
    """How long until the journal says that nothing waits."""
    began = time.time()
    while time.time() < began + 60:
        _, figures = await ask_json(port, "/metrics")
        if gauge(figures, "agentserve_store_up") == 1 and gauge(figures, "agentserve_store_queue_rows") < 100:
            return round(time.time() - began, 1)
        await asyncio.sleep(0.2)
    return float("inf")


def gauge(figures: bytes, name: str) -> float:
    """One figure of the metrics' text."""
    for line in figures.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    return float("nan")


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kill", "away"))
    parser.add_argument("--postgres", action="store_true", help="kill: on PostgreSQL instead of SQLite")
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = f"sqlite:///{folder}/scenario.db"
        if args.what == "away" or args.postgres:
            binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
            cluster = Cluster(binaries)
            stack.callback(shutil.rmtree, cluster.home, ignore_errors=True)
            stack.callback(cluster.stop)
            if args.what == "away":
                out = asyncio.run(away(args, cluster, folder))
                print(json.dumps(out, indent=2))
                return 0 if out["ok"] else 1
            url = cluster.url()
            asyncio.run(upgraded(url))
        out = asyncio.run(kill(args, url, folder))
    print(json.dumps(out, indent=2))
    return 0 if out["ok"] else 1


async def upgraded(url: str) -> None:
    """A database with our tables."""
    database = Database(url)
    await migrations.upgrade(database)
    await database.close()


if __name__ == "__main__":
    raise SystemExit(main())
