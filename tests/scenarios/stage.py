"""What the scenarios share: the gateway and engines as processes of their own, and a lean client.

Rule: the product is started as a user starts it. Everything that was started is stopped, by its own process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentserve.live.upstream import Deadlines
from agentserve.live.upstream.lean import LeanUpstream

START_S = 40.0
STOP_S = 20.0
AGENTSERVE = str(Path(sys.executable).with_name("agentserve"))
JSON = [(b"content-type", b"application/json")]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True, kw_only=True)
class Process:
    """One that was started."""

    popen: asyncio.subprocess.Process
    port: int

    def rss_mb(self) -> float:
        """Resident memory."""
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0

    def files(self) -> int:
        """Open file descriptors."""
        with contextlib.suppress(OSError):
            return len(os.listdir(f"/proc/{self.popen.pid}/fd"))
        return 0

    def cpu_s(self) -> float:
        """Processor seconds so far."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0


@contextlib.asynccontextmanager
async def started(command: Sequence[str], port: int, log: Path) -> AsyncIterator[Process]:
    """The process, once it listens."""
    with log.open("ab") as out:
        popen = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out, cwd=log.parent)
    try:
        async with asyncio.timeout(START_S):
            while True:
                if popen.returncode is not None:
                    raise RuntimeError(f"{' '.join(command[:3])} ended; see {log}")
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.1)
        yield Process(popen=popen, port=port)
    finally:
        if popen.returncode is None:
            popen.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(popen.wait(), STOP_S)
            except TimeoutError:
                popen.kill()
                await popen.wait()


@contextlib.asynccontextmanager
async def gateway(engines: Sequence[str], folder: Path, *settings: str) -> AsyncIterator[Process]:
    """The gateway in front of these engines, with its store in `folder`."""
    port = free_port()
    command = [AGENTSERVE, "up", "--port", str(port), "--log-level", "warning"]
    command += ["--store", f"sqlite+aiosqlite:///{folder}/scenario.db"]
    for url in engines:
        command += ["--engine", url]
    for setting in settings:
        command += ["--set", setting]
    async with started(command, port, folder / "gateway.log") as process:
        async with asyncio.timeout(START_S):
            while (await ask_json(port, "/readyz"))[0] != 200:
                await asyncio.sleep(0.2)
        yield process


@contextlib.asynccontextmanager
async def emulated(folder: Path, *flags: str) -> AsyncIterator[Process]:
    """One emulated engine."""
    port = free_port()
    command = [AGENTSERVE, "engine", "--port", str(port), *flags]
    async with started(command, port, folder / f"engine-{port}.log") as process:
        yield process


async def ask_json(port: int, path: str) -> tuple[int, Any]:
    """A GET on the gateway."""
    client = LeanUpstream(f"http://127.0.0.1:{port}")
    try:
        reply = await client.send("GET", path, [], b"", deadlines=Deadlines(first_byte_s=10.0))
        parts = []
        while not reply.done:
            parts.append(await reply.read())
        reply.close()
        body = b"".join(parts)
        with contextlib.suppress(ValueError):
            return reply.status, json.loads(body)
        return reply.status, body
    finally:
        await client.stop()


async def counters_at_rest(port: int, *, within_s: float = 20.0) -> dict[str, Any]:
    """The gateway's summary, once nothing runs any more or the time is over."""
    running = ("steps_waiting", "steps_running", "requests_open")
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while True:
        _, summary = await ask_json(port, "/admin/v1/summary")
        if not any(summary[key] for key in running) or loop.time() > until:
            return {key: summary[key] for key in (*running, "scheduler", "engines_up", "programs")}
        await asyncio.sleep(0.5)
