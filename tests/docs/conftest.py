"""A gateway as a reader of the pages has it: `agentserve up` in a folder of its own, nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.readme import answers, free_ports

START_S_MAX = 120.0
STOP_S_MAX = 60.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway was started."""
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def gateway(home: Path) -> Iterator[str]:
    """Its address, once it can serve."""
    folder = home
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}
    command = [sys.executable, "-m", "agentserve.cli", "up", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + START_S_MAX
        while not answers(f"{url}/readyz"):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError((folder / "log").read_text())
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S_MAX)
        process.kill()
        process.wait()
