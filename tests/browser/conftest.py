"""A gateway in a process of its own with agents at work, and Debian's Chromium driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE_S = 60.0
PATIENCE_MS = 1000 * PATIENCE_S
# Screenshots are kept here when it is set; CI keeps the folder.
expect.set_options(timeout=PATIENCE_MS)
SHOTS = os.environ.get("CONSOLE_SCREENSHOTS", "")
READ = {
    "type": "function",
    "function": {"name": "read_file", "parameters": {"type": "object", "properties": {}}},
}


class Gateway:
    """The gateway's address, and agents that call it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._threads: list[threading.Thread] = []

    def step(
        self,
        program: str,
        *,
        workflow: str = "",
        tokens: int = 64,
        words: int = 40,
        tool: bool = True,
        long: bool = False,
    ) -> None:
        """One call of the program, to its end."""
        said = f"{program} " + "word " * words
        body: dict[str, Any] = {"model": "emulated", "max_tokens": tokens}
        if long:
            body["ignore_eos"] = True  # as long as it may be
        elif tool:
            said = 'agentserve-script: [{"tool": "read_file", "arguments": {}}]\n' + said
            body["tools"] = [READ]
        else:
            said = 'agentserve-script: [{"text": "done"}]\n' + said
        body["messages"] = [{"role": "user", "content": said}]
        headers = {"x-agentserve-program-id": program}
        if workflow:
            headers["x-agentserve-workflow"] = workflow
        httpx.post(
            f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=300
        ).raise_for_status()

    def start(self, program: str, **how: Any) -> threading.Thread:
        """The same in the background."""

        def work() -> None:
            with contextlib.suppress(httpx.HTTPError):  # the gateway may be stopped under it
                self.step(program, **how)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def gateway_process(folder: Path, *arguments: str) -> Iterator[Gateway]:
    port = int(arguments[arguments.index("--port") + 1]) if "--port" in arguments else free_port()
    command = [sys.executable, "-m", "agentserve.cli", "up", "--port", str(port), *arguments]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}
    log = (folder / "gateway.log").open("w")
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            assert process.poll() is None, (folder / "gateway.log").read_text()
            assert time.monotonic() < until, "the gateway did not get ready"
            time.sleep(0.1)
        yield Gateway(url)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # a long reply is still streaming; it need not be waited for
            process.kill()
            process.wait(timeout=30)
        log.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module: while Playwright's loop runs in a thread, no asynchronous test can."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium, or run .ci/servers")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_process(tmp_path_factory.mktemp("gateway"), "--kv-tokens", "60000") as started:
        for name in ("survey-1", "survey-2"):
            for _ in range(2):
                started.step(name, workflow="survey")
        started.step("essay-1", workflow="essay", tool=False)
        yield started


class Watched:
    """A page, and what it complained of."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.troubles: list[str] = []
        page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", self._asked)
        page.set_default_timeout(PATIENCE_MS)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:" + self.url)):
            self.troubles.append(f"asked {request.url}")

    def open(self, view: str = "") -> Page:
        self.page.goto(f"{self.url}/console/{view}")
        return self.page

    def shot(self, name: str) -> None:
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.fixture
def watched(browser: Browser, gateway: Gateway) -> Iterator[Watched]:
    """A page that must end without a complaint."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    made = Watched(context.new_page(), gateway.url)
    yield made
    context.close()
    assert not made.troubles, made.troubles
