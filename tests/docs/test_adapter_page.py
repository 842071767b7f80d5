"""The page on adapters, followed: what it says to save is built, installed, recognised and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import blocks

BLOCKS = blocks(Path(__file__).parents[2] / "adapters" / "WRITING.md")
ADAPTER, TRIAL = (b.text for b in BLOCKS if b.language == "python")
(PROJECT,) = (b.text for b in BLOCKS if b.language == "toml")
(SHOWN,) = (b.text for b in BLOCKS if b.language == "text")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the page's distribution was installed."""
    source, target = tmp_path_factory.mktemp("pebble"), tmp_path_factory.mktemp("installed")
    (source / "pebble_adapter.py").write_text(ADAPTER, encoding="utf-8")
    (source / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--python", sys.executable, "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def pebble() -> Iterator[str]:
    """The invented engine, on a port of its own."""
    answers: dict[str, Any] = {
        "/info": {"engine": "pebble", "version": "3", "kv_tokens": 50_000},
        "/stats": {"started": 7, "running": 0, "waiting": 0},
        "/v1/models": {"data": [{"id": "tiny", "object": "model"}]},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            payload = json.dumps(found or {}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def python(folder: Path, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_trial_prints_what_the_page_says(installed: Path) -> None:
    assert python(installed, "-c", TRIAL).strip() == SHOWN.strip()


def test_doctor_recognises_the_engine_by_the_installed_adapter(installed: Path, pebble: str) -> None:
    told = json.loads(python(installed, "-m", "agentserve.cli", "doctor", pebble, "--json"))
    text = json.dumps(told)
    assert "pebble" in text
    assert "native: /hold" in text
