"""A process that may open few files: what it takes, and what it keeps for its engines."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.test_up import START_S, free_port


@contextlib.contextmanager
def process(folder: Path, port: int, *verb: str, soft: int, hard: int) -> Iterator[subprocess.Popen[bytes]]:
    """A verb that serves on the port, with such limits."""
    command = [sys.executable, "-m", "agentserve.cli", *verb, "--port", str(port)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}
    started = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    try:
        until = time.monotonic() + START_S
        while time.monotonic() < until and started.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200:
                    break
            time.sleep(0.1)
        yield started
    finally:
        started.kill()
        started.wait()


def test_the_gateway_takes_all_the_files_that_it_may_have(tmp_path: Path) -> None:
    with process(tmp_path, free_port(), "up", soft=256, hard=512) as gateway:
        limits = Path(f"/proc/{gateway.pid}/limits").read_text()
        (files,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert files.split()[3:5] == ["512", "512"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_too_many_clients_leave_the_engines_their_connections(tmp_path: Path, workers: str) -> None:
    engine, port = free_port(), free_port()
    up = ("up", "--engine", f"http://127.0.0.1:{engine}", "--workers", workers)
    with (
        process(tmp_path, engine, "engine", "--time-scale", "50", soft=1024, hard=1024),
        process(tmp_path, port, *up, soft=256, hard=256),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as client,
        contextlib.ExitStack() as crowd,
    ):
        body = {"model": "emulated", "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}
        assert client.get("/healthz").status_code == 200, "this one has its connection"
        for _ in range(600):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        time.sleep(1)
        for stream in (True, False):
            answer = client.post("/v1/chat/completions", json={**body, "stream": stream})
            assert answer.status_code == 200, answer.text
        told = client.get("/metrics").text
        assert 'agentserve_refusals_total{reason="not_taken",status="503"}' in told
