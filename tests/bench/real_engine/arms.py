"""What stands between agents and engine: nothing, agentserve, ThunderAgent, another router; each its own process.

Rule: every arm is started anew for every run with its own defaults, and sees the same engine. Routers are started as
for `tests.bench.peers`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.bench.peers import arms as peer_arms

ROOT = Path(__file__).resolve().parents[3]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
MODEL = "tiny"
ROUTERS = ("nginx", "litellm", "vllm-router", "sglang-router", "vllm-router-programs")

# ThunderAgent marks every reasoning program once none is acting, because what it has marked does not count
THUNDERAGENT_FLAW = "while backend.remaining_capacity() < 0:"
THUNDERAGENT_FIX = "while backend.remaining_capacity() + backend.future_paused_tokens < 0:"


@contextmanager
def direct(engine: str) -> Iterator[str]:
    yield engine


@contextmanager
def agentserve(engine: str, more: Sequence[str] = ()) -> Iterator[str]:
    """The gateway as an operator starts it, in a folder of its own."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("agentserve")),
        "up",
        "--engine",
        engine,
        "--port",
        str(port),
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        served([*command, *more], port, "/readyz", Path(folder)) as url,
    ):
        yield url


@contextmanager
def thunderagent(engine: str, sources: Path, python: str, interval_s: float) -> Iterator[str]:
    """Its own code from its sources, mended in one line; `sources` is not changed."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        mended(sources, Path(folder))
        command = [
            python, "-m", "ThunderAgent", "--host", "127.0.0.1", "--port", str(port), "--backends", engine,
            "--log-level", "warning", "--metrics", "--scheduler-interval", str(interval_s),
        ]  # fmt: skip
        with served(command, port, "/health", Path(folder)) as url:
            yield url


@contextmanager
def router(engine: str, name: str, peers: Path, pace: peer_arms.Pace) -> Iterator[str]:
    """One of the peers' arms, before this one engine."""
    arm = peer_arms.ARMS[name]
    assert arm.command is not None
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        place = peer_arms.Place(
            peers=peers, folder=Path(folder), engines=[engine], port=port, pace=pace, model=MODEL
        )
        command = arm.command(place)
        with served(command, port, arm.ready, Path(folder), env=peer_arms.environment()) as url:
            yield url


def mended(sources: Path, folder: Path) -> None:
    """A copy of its package without the flaw."""
    for path in (sources / "ThunderAgent").rglob("*.py"):
        text = path.read_text(encoding="utf-8").replace(THUNDERAGENT_FLAW, THUNDERAGENT_FIX)
        copy = folder / path.relative_to(sources)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")


@contextmanager
def served(
    command: Sequence[str], port: int, ready: str, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A process and its address while it runs; what it wrote is shown where it fails."""
    url = f"http://127.0.0.1:{port}"
    log_file = folder / "log.txt"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=dict(env or os.environ)
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve:\n{log_file.read_text()[-2000:]}")
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
