"""The store's two bad days, with the real gateway under load. By hand:

    python -m tests.scenarios.store_outages kill [--postgres]      the gateway is killed and started again
    python -m tests.scenarios.store_outages away [--seconds 60]    PostgreSQL is stopped meanwhile

`away` (see `store_away`) compares with a gateway beside it whose database stays. Prints figures as JSON; exit status 1
when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from agentserve.store import migrations, queries
from agentserve.store.database import Database
from tests.scenarios.stage import emulated, free_port
from tests.scenarios.store_away import away
from tests.scenarios.store_load import Seen, agent, begun_behind, end_of, holes, serving
from tests.store.conftest import Cluster

LOST_S_MAX = 1.0
BEHIND = 3  # responses that run in the background when the gateway is killed
ENDS_S_MAX = 60.0  # after which they are to be known as failed


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
    ends: list[str] = []
    port = free_port()
    async with emulated(folder, "--time-scale", "20") as engine, asyncio.TaskGroup() as group:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def gateways() -> float:
            async with serving(port, engine.port, url, folder) as first:
                ready.set_result(None)
                await asyncio.sleep(args.seconds / 2 - LOST_S_MAX)
                behind = [await begun_behind(port, number) for number in range(BEHIND)]
                await asyncio.sleep(LOST_S_MAX)
                first.popen.send_signal(signal.SIGKILL)
                at = time.time()
                await first.popen.wait()
            ages.append(await forecasts_age_s(url, at))
            async with serving(port, engine.port, url, folder):
                ends.extend(
                    await asyncio.gather(*(end_of(port, named, within_s=ENDS_S_MAX) for named in behind))
                )
                await asyncio.gather(*agents)
            return at

        running = group.create_task(gateways())
        await ready
        until = time.time() + args.seconds + 8
        agents = [
            group.create_task(agent(n, port, lambda: time.time() >= until, seen)) for n in range(args.agents)
        ]
    killed_at = running.result()
    database = Database(url)
    programs = [row for row in await queries.programs(database, limit=10_000) if row["steps"]]
    acknowledged = sum(1 for step in seen.steps if step.at + step.seconds < killed_at - LOST_S_MAX)
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
        "background_responses_after_it": ends,
        "retries": seen.retries,
        "failures": seen.failures[:5],
    }
    out["ok"] = len(programs) == args.agents and not missing and out["of_those_kept"] >= acknowledged
    out["ok"] = out["ok"] and ages[0] <= LOST_S_MAX and ends == ["failed"] * BEHIND
    return out


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kill", "away"))
    parser.add_argument("--postgres", action="store_true", help="kill: on PostgreSQL instead of SQLite")
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2, help="away: each strikes the other of two gateways")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = f"sqlite:///{folder}/scenario.db"
        if args.what == "away":
            clusters = [cluster_for(stack) for _ in range(2)]
            folders = [folder / "one", folder / "other"]
            for made in folders:
                made.mkdir()
            out = asyncio.run(
                away(clusters, folders, agents=args.agents, seconds=args.seconds, rounds=args.rounds)
            )
        else:
            if args.postgres:
                url = cluster_for(stack).url()
                asyncio.run(upgraded(url))
            out = asyncio.run(kill(args, url, folder))
    print(json.dumps(out, indent=2))
    for phase in ("there", "away", "catching_up") if args.what == "away" else ():
        ratio, spread = out[phase]["p99_ratio"]
        low, high = spread or (float("nan"), float("nan"))
        print(
            f"{phase}: p99 is {ratio:.3f} times the other gateway's of the same seconds ({low:.3f} to {high:.3f})",
            file=sys.stderr,
        )
    return 0 if out["ok"] else 1


def cluster_for(stack: contextlib.ExitStack) -> Cluster:
    """A PostgreSQL server of our own, gone at the end."""
    cluster = Cluster(sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1])
    stack.callback(shutil.rmtree, cluster.home, ignore_errors=True)
    stack.callback(cluster.stop)
    return cluster


async def upgraded(url: str) -> None:
    """A database with our tables."""
    database = Database(url)
    await migrations.upgrade(database)
    await database.close()


if __name__ == "__main__":
    raise SystemExit(main())
