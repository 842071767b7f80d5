"""What the page on operations tells an operator to do, done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.docs.pages import commands

PAGE = Path(__file__).parents[2] / "agentserve" / "OPERATIONS.md"
WRITTEN_S_MAX = 60.0


def stored(home: Path, database: str) -> list[dict[str, object]]:
    """The programs in a database."""
    command = [
        sys.executable,
        "-m",
        "agentserve.cli",
        "programs",
        "--store",
        f"sqlite:///{database}",
        "--json",
    ]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return list(found if isinstance(found, list) else found["programs"])


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 command is not installed")
def test_a_backup_taken_while_the_gateway_runs_is_whole(gateway: str, home: Path) -> None:
    said = {"model": "emulated", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    httpx.post(f"{gateway}/v1/chat/completions", json=said, timeout=60).raise_for_status()
    until = time.monotonic() + WRITTEN_S_MAX
    while not stored(home, "agentserve.db") and time.monotonic() < until:
        time.sleep(0.2)
    (backup,) = (c.text for c in commands(PAGE) if c.text.startswith("sqlite3 "))
    done = subprocess.run(["bash", "-c", backup], cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(stored(home, "agentserve-backup.db")) == 1


def test_a_drained_engine_gets_nothing_new_until_it_is_taken_back(gateway: str) -> None:
    said = {"model": "emulated", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    with httpx.Client(base_url=gateway, timeout=60) as client:
        client.post("/admin/v1/engines/emulated/drain").raise_for_status()
        refused = client.post("/v1/chat/completions", json=said)
        assert refused.status_code == 503
        assert "no engine for this model answers at the moment" in refused.text
        client.post("/admin/v1/engines/emulated/resume").raise_for_status()
        assert client.post("/v1/chat/completions", json=said).status_code == 200
