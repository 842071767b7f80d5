"""Signals that come while the gateway is still starting."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.test_up import START_S, free_port


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A gateway in the midst of its start: it asks an engine, which says nothing, what it is."""
    port = free_port()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(START_S)
        engine = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [
            sys.executable, "-m", "agentserve.cli", "up", "--port", str(port), "--engine", engine, "--log-level", "info"
        ]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            asked, _ = silent.accept()
            with asked:
                yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()
            process.communicate()


def test_a_stop_ends_the_start_without_an_error(starting: tuple[str, subprocess.Popen[str]]) -> None:
    _, process = starting
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=START_S)
    assert process.returncode == 0, "the system's own way would not end the first process of a container"
    assert said == ""


def test_a_reload_waits_until_the_gateway_serves(starting: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = starting
    process.send_signal(signal.SIGHUP)
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz").status_code == 200:
                break
        time.sleep(0.1)
    assert process.poll() is None, "it went on"
    assert process.stderr is not None
    assert any("settings reloaded" in line for line in iter(process.stderr.readline, ""))
