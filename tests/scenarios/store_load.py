"""What the store's scenarios share: agents that keep a gateway busy, what they saw, and looks into the journal.

Rule: agents behave as plain clients do. They hold conversations without a name in them, call a tool between steps, and
try again when the gateway is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from agentserve.store.database import Database
from tests.scenarios.stage import AGENTSERVE, Process, ask_json, started

TOOLS = [
    {"type": "function", "function": {"name": "bash", "parameters": {"type": "object", "properties": {}}}}
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One answered call: when it was sent, how long it took, and how much of that the gateway says was its own."""

    at: float
    seconds: float
    overhead_ms: float


@dataclass(slots=True)
class Seen:
    """What the agents saw: their steps, how often they tried again, and what failed for good."""

    steps: list[Step] = field(default_factory=list)
    retries: int = 0
    failures: list[str] = field(default_factory=list)


async def agent(
    number: int, port: int, until: Callable[[], bool], seen: Seen, *, messages_max: int | None = None
) -> None:
    """One conversation that grows, or several when it may not grow for ever; its opener is its own."""
    rng = random.Random(number)
    messages: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while not until():
            if not messages or (messages_max is not None and len(messages) > messages_max):
                messages = [{"role": "user", "content": f"task {number}: {rng.random()}"}]
            body = {"model": "emulated", "messages": messages, "max_tokens": 12, "tools": TOOLS}
            at, began = time.time(), time.perf_counter()
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
            overhead_ms = float(reply.headers.get("x-agentserve-overhead-ms", "nan"))
            seen.steps.append(Step(at=at, seconds=time.perf_counter() - began, overhead_ms=overhead_ms))
            message = reply.json()["choices"][0]["message"]
            messages.append(
                {k: v for k, v in message.items() if k in ("role", "content", "tool_calls") and v}
            )
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            calls = message.get("tool_calls") or ()
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
            if not calls:
                messages.append({"role": "user", "content": f"go on, {rng.random()}"})


async def begun_behind(port: int, number: int) -> str:
    """A response that nobody waits for, and that takes long; its id."""
    body = {"model": "emulated", "input": f"essay {number}", "background": True, "max_output_tokens": 100_000}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        reply = await client.post("/v1/responses", json={**body, "ignore_eos": True})
        return str(reply.raise_for_status().json()["id"])


async def end_of(port: int, response: str, *, within_s: float) -> str:
    """What is said of it once it is said to be over."""
    until = time.monotonic() + within_s
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while True:
            reply = await client.get(f"/v1/responses/{response}")
            said = reply.json()
            if reply.status_code != 200 or said["status"] not in ("queued", "in_progress"):
                return str(said.get("status", reply.status_code))
            if time.monotonic() >= until:
                return str(said["status"])
            await asyncio.sleep(0.5)


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
