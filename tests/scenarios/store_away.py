"""PostgreSQL is stopped for a while under load, beside a gateway whose PostgreSQL stays.

Two houses, each with agents, a gateway, an engine and a database of its own, live side by side. In each round the
database of one is stopped and the other's is not; then they change places. Whatever else the machine does meanwhile it
does to both, so the two houses' steps of the same seconds are compared, and not one house's steps of different times.
Conversations begin anew before they grow long, so that steps are alike all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from agentserve.store import migrations
from agentserve.store.database import Database
from tests.scenarios.stage import Process, ask_json, emulated, free_port
from tests.scenarios.store_load import Seen, Step, agent, holes, serving
from tests.store.conftest import Cluster

MESSAGES_MAX = 16  # of a conversation
WARM_S = 8.0
CATCH_UP_S_MAX = 120.0
P99_RATIO_MAX = 1.05  # held to where there are enough steps to tell
SECONDS_TELLING = 60.0
RESAMPLES = 2_000

Span = tuple[float, float]


@dataclass(slots=True, kw_only=True)
class House:
    """One gateway and what is around it."""

    cluster: Cluster
    url: str
    port: int
    process: Process
    seen: Seen = field(default_factory=Seen)

    async def figure(self, name: str) -> float:
        """One of the gateway's metrics; labelled ones are added up."""
        _, told = await ask_json(self.port, "/metrics")
        lines = (line for line in told.decode().splitlines() if line.startswith((name + " ", name + "{")))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    async def caught_up(self) -> bool:
        """Does nothing wait to be written but what has just come?"""
        return (
            await self.figure("agentserve_store_up") == 1
            and await self.figure("agentserve_store_queue_rows") < 200
        )


@dataclass(slots=True, kw_only=True)
class Round:
    """One database's absence: whose, and the spans of time around it."""

    struck: House
    spared: House
    away: Span = (0.0, 0.0)
    catching_up: Span = (0.0, 0.0)
    queued_rows: float = 0.0
    told_up: float = 1.0

    @property
    def there(self) -> tuple[Span, Span]:
        """As long on either side of it."""
        seconds = (self.away[1] - self.away[0]) / 2
        begun, done = self.away[0], self.catching_up[1]
        return (begun - seconds - 1.0, begun - 1.0), (done, done + seconds)


@contextlib.asynccontextmanager
async def housed(cluster: Cluster, folder: Path) -> AsyncIterator[House]:
    """A house, all of it up."""
    url = cluster.url()
    database = Database(url)
    await migrations.upgrade(database)
    await database.close()
    port = free_port()
    async with (
        emulated(folder, "--time-scale", "20") as engine,
        serving(port, engine.port, url, folder) as process,
    ):
        yield House(cluster=cluster, url=url, port=port, process=process)


async def away(
    clusters: Sequence[Cluster], folders: Sequence[Path], *, agents: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """So many rounds; what was seen, and whether anybody but the journal noticed."""
    over = False
    async with (
        housed(clusters[0], folders[0]) as one,
        housed(clusters[1], folders[1]) as other,
        asyncio.TaskGroup() as group,
    ):
        houses = [one, other]
        for number, house in enumerate(house for house in houses for _ in range(agents)):
            group.create_task(agent(number, house.port, lambda: over, house.seen, messages_max=MESSAGES_MAX))
        await asyncio.sleep(WARM_S)
        played = []
        for number in range(rounds):
            struck, spared = houses[number % 2], houses[1 - number % 2]
            played.append(await play(Round(struck=struck, spared=spared), seconds))
        over = True
    out = judged(played, seconds)
    out["journal"] = [await kept(house) for house in houses]
    complete = all(j["steps_kept"] == j["steps"] and not j["pieces_missing"] for j in out["journal"])
    out["ok"] = out["ok"] and complete
    return out


async def play(it: Round, seconds: float) -> Round:
    """Half the time there, away, back, and half the time there again."""
    await asyncio.sleep(seconds / 2 + 1.0)
    await asyncio.to_thread(it.struck.cluster.stop)
    begun = time.time()
    await asyncio.sleep(seconds)
    it.queued_rows = await it.struck.figure("agentserve_store_queue_rows")
    it.told_up = await it.struck.figure("agentserve_store_up")
    it.away = (begun, time.time())
    await asyncio.to_thread(it.struck.cluster.start)
    back = time.time()
    while not await it.struck.caught_up() and time.time() < back + CATCH_UP_S_MAX:
        await asyncio.sleep(0.1)
    it.catching_up = (back, time.time())
    await asyncio.sleep(seconds / 2)
    return it


async def kept(house: House) -> dict[str, Any]:
    """What the house's journal has of all that its agents did."""
    database = Database(house.url)
    async with database.reading() as connection:
        query = "SELECT count(*) FROM steps WHERE outcome = 'finished'"
        steps = int(await connection.scalar(text(query)) or 0)
    missing = await holes(database)
    await database.close()
    return {"steps": len(house.seen.steps), "steps_kept": steps, "pieces_missing": missing}


def judged(rounds: Sequence[Round], seconds: float) -> dict[str, Any]:
    """The struck houses' steps beside the spared ones' of the same seconds, for each phase."""
    failures = [said for it in rounds[:1] for house in (it.struck, it.spared) for said in house.seen.failures]
    retries = sum(house.seen.retries for it in rounds[:1] for house in (it.struck, it.spared))
    out: dict[str, Any] = {
        "seconds_away": seconds,
        "rounds": len(rounds),
        "failures": failures[:5],
        "retries": retries,
        "there": compared(rounds, lambda it: it.there),
        "away": compared(rounds, lambda it: (it.away,)),
        "catching_up": compared(rounds, lambda it: (it.catching_up,)),
        "rows_that_waited": [it.queued_rows for it in rounds],
        "caught_up_s": [round(it.catching_up[1] - it.catching_up[0], 1) for it in rounds],
    }
    out["ok"] = not failures and not retries and not any(it.told_up for it in rounds)
    if seconds >= SECONDS_TELLING:
        out["ok"] = out["ok"] and out["away"]["p99_ratio"][0] <= P99_RATIO_MAX
    return out


def compared(rounds: Sequence[Round], spans: Callable[[Round], Sequence[Span]]) -> dict[str, Any]:
    """Steps of both kinds of house in these spans; ratios with an interval that nine in ten resamples fall into."""
    blocks = [block for it in rounds for span in spans(it) for block in by_second(it, span)]
    struck = [step for block in blocks for step in block[0]]
    spared = [step for block in blocks for step in block[1]]
    ratios = sorted(resampled(blocks))
    return {
        "steps": [len(struck), len(spared)],
        "p50_ms": [at_share(struck, 0.5), at_share(spared, 0.5)],
        "p99_ms": [at_share(struck, 0.99), at_share(spared, 0.99)],
        "p99_ratio": [
            round(at_share(struck, 0.99) / at_share(spared, 0.99), 3),
            [round(ratios[int(len(ratios) * q)], 3) for q in (0.05, 0.95)] if ratios else None,
        ],
        "overhead_ms_p99": [own_at_share(struck, 0.99), own_at_share(spared, 0.99)],
    }


def by_second(it: Round, span: Span) -> Iterator[tuple[list[Step], list[Step]]]:
    """What both houses sent in each second: neighbours in time share what the machine did to them."""
    blocks: dict[int, tuple[list[Step], list[Step]]] = defaultdict(lambda: ([], []))
    for place, house in enumerate((it.struck, it.spared)):
        for step in house.seen.steps:
            if span[0] <= step.at < span[1]:
                blocks[int(step.at - span[0])][place].append(step)
    yield from blocks.values()


def resampled(blocks: Sequence[tuple[list[Step], list[Step]]]) -> Iterator[float]:
    """Ratios of the two p99 had other seconds of the same kind been seen."""
    rng = random.Random(1)
    for _ in range(RESAMPLES if len(blocks) > 1 else 0):
        drawn = rng.choices(blocks, k=len(blocks))
        struck = at_share([step for block in drawn for step in block[0]], 0.99)
        spared = at_share([step for block in drawn for step in block[1]], 0.99)
        if spared > 0:
            yield struck / spared


def at_share(steps: Sequence[Step], share: float) -> float:
    """The time that so many of the steps took at most."""
    return _at([step.seconds * 1e3 for step in steps], share)


def own_at_share(steps: Sequence[Step], share: float) -> float:
    """The same of what the gateway added."""
    return _at([step.overhead_ms for step in steps], share)


def _at(figures: list[float], share: float) -> float:
    figures.sort()
    return round(figures[min(int(len(figures) * share), len(figures) - 1)], 2) if figures else float("nan")
