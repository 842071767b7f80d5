"""Engines and a gateway as processes of their own, up for the length of a `with`.

Rule: whatever is started here is ended here, and a process that does not come up shows its last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from agentserve.errors import AgentServeError

START_S = 90.0  # a busy machine compiles imports slowly
STOP_S = 10.0
POLL_S = 0.1
LAST_WORDS_CHARS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A server that answers."""

    name: str
    url: str
    pid: int


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def process(
    name: str,
    command: Sequence[str],
    *,
    url: str,
    ready: str = "/health",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> AsyncIterator[Started]:
    """A server, started by `command`, up when `url` + `ready` answers 200, ended with the block."""
    with tempfile.TemporaryFile() as log:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=cwd
        )

        def last_words() -> str:
            log.seek(max(log.seek(0, os.SEEK_END) - LAST_WORDS_CHARS, 0))
            return log.read().decode(errors="replace").strip()

        try:
            await _up(child, name, url + ready, last_words)
            yield Started(name=name, url=url, pid=child.pid)
        finally:
            await _end(child)


async def _up(child: asyncio.subprocess.Process, name: str, url: str, last_words: Callable[[], str]) -> None:
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client, asyncio.timeout(START_S):
            while True:
                if child.returncode is not None:
                    raise AgentServeError(f"{name} ended with {child.returncode}: {last_words()}")
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(url)).status_code == 200:
                        return
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise AgentServeError(f"{name} did not answer within {START_S:g} s: {last_words()}") from error


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def our_environment() -> dict[str, str]:
    """The environment without settings of a gateway that happens to be configured."""
    return {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}


@contextlib.asynccontextmanager
async def engine(
    *, profile: str, time_scale: float, kv_tokens: int, name: str = "engine"
) -> AsyncIterator[Started]:
    """An emulated engine."""
    port = free_port()
    flags = ("--port", str(port), "--profile", profile, "--time-scale", str(time_scale))
    command = (sys.executable, "-m", "agentserve.cli", "engine", *flags, "--kv-tokens", str(kv_tokens))
    async with process(name, command, url=f"http://127.0.0.1:{port}", env=our_environment()) as started:
        yield started


def paced(time_scale: float) -> tuple[str, ...]:
    """Flags under which the scheduler's time runs as fast as that of its emulated engines."""
    return () if time_scale == 1.0 else ("--set", f"scheduler.time_scale={time_scale!r}")


@contextlib.asynccontextmanager
async def gateway(engines: Sequence[str], *flags: str) -> AsyncIterator[Started]:
    """agentserve before these engines, with a database of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="agentserve-demo-") as folder:
        store = f"sqlite+aiosqlite:///{folder}/demo.db"
        named = [flag for url in engines for flag in ("--engine", url)]
        command = (
            sys.executable,
            "-m",
            "agentserve.cli",
            "up",
            *named,
            "--port",
            str(port),
            "--store",
            store,
        )
        url = f"http://127.0.0.1:{port}"
        async with process(
            "agentserve", (*command, *flags), url=url, ready="/readyz", env=our_environment(), cwd=folder
        ) as started:
            yield started
