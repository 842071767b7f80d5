"""Run every command of the README, in order, in a fresh clone: a stranger's path. `python -m tests.docs.readme`.

Rule: no command is left out in silence. Each is run, or listed with the reason why not; what is changed is printed.
The ports are free ones, the engines at `gpu1` and `gpu2` are emulated, and `codex` is a stand-in that makes one call.
It uses the standard library alone, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import Command, PageError, blocks, changed, commands

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S_MAX = 600.0  # until a gateway answers, its installation included
COMMAND_S_MAX = 900.0
STOP_S_MAX = 60.0
SHOWN_LINES = 12
PORTS = range(20_000, 30_000)
# Why a command is not run here. A command of the README that is neither run nor in this list is an error.
NOT_RUN = {
    "make test": "it runs by itself in CI",
    "make readme": "it is what runs this",
    "make check": "`make test` begins with it",
    "make lock": "it takes what the package index has today",
    "make test-frameworks": "it installs every agent framework; long, run by hand",
    "make test-engines": "it installs real engines; long, run by hand",
}
# What a command must print, by a part of it. Exit status 0 is asked of all.
PRINTS = {
    "/v1/chat/completions": r"(?i)x-agentserve-program: \S+",
    "agentserve programs": r"steps",
    "agentserve demo": r"mean",
    "agentserve simulate": r"agentserve",
    "agentserve doctor": r"usable",
    "agentserve run -- codex": r"chatcmpl",
    "agentserve keys create": r"\S{20}",
    "--print-config": r"gateway\.port = ",
}
CODEX = """#!/bin/sh
# Stands in for the real one: the same base URL, one call.
exec curl -sSf "$OPENAI_BASE_URL/chat/completions" -H 'content-type: application/json' \\
  -H "authorization: Bearer $OPENAI_API_KEY" \\
  -d '{"model":"emulated","max_tokens":8,"messages":[{"role":"user","content":"mend the tests"}]}'
"""


class Stranger:
    """A fresh clone with a clean environment, in which commands are run one after another."""

    def __init__(self, home: Path) -> None:
        self.clone = home / "agentserve"
        self.logs = home
        self.port, gpu1, gpu2 = free_ports(3)
        self.engines = {"gpu1:8000": f"127.0.0.1:{gpu1}", "gpu2:8000": f"127.0.0.1:{gpu2}"}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.done: set[str] = set()
        self.environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("AGENTSERVE_", "VIRTUAL_ENV"))
        }
        self.environ |= {
            "PATH": f"{self.clone / '.venv/bin'}:{home / 'bin'}:{os.environ['PATH']}",
            "PORT": str(self.port),
            "AGENTSERVE_GATEWAY_PORT": str(self.port),
            "AGENTSERVE_URL": f"http://127.0.0.1:{self.port}",
        }

    def follow(self, command: Command) -> None:
        """Run one command of the page as written, but for its addresses and what its mark says."""
        plain = command.text.replace(".venv/bin/", "")
        reason = NOT_RUN.get(plain.split("#")[0].strip())
        if reason is None and command.inline and plain in self.done:
            reason = "run above"
        where = f"{command.page}:{command.line}"
        if reason is not None:
            print(f"-- {where}: not run, {reason}: {plain}", flush=True)
            return
        self.done.add(re.sub(r"\s+#.*", "", plain))
        text = self.here(command)
        print(f"== {where}: {text}", flush=True)
        if text.startswith("export "):
            self.environ |= dict(word.split("=", 1) for word in shlex.split(text)[1:])
        elif re.match(r"(make|agentserve) up\b(?!.*--print-config)", text):
            self.serve(text)
        else:
            self.run(text)

    def here(self, command: Command) -> str:
        """The command with this run's addresses in place of the README's."""
        text = changed(command.text, command.mark) if command.mark else command.text
        for named, real in self.engines.items():
            text = text.replace(named, real)
        return text.replace("127.0.0.1:8400", f"127.0.0.1:{self.port}")

    def run(self, text: str) -> None:
        """Run to the end; its status and its output are asked of it."""
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", text],
            cwd=self.clone,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S_MAX,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        lines = output.splitlines()
        for line in lines[:SHOWN_LINES]:
            print(f"   {line[:160]}")
        if len(lines) > SHOWN_LINES:
            print(f"   … {len(lines) - SHOWN_LINES} more lines")
        print(f"   [{time.monotonic() - began:.1f} s]", flush=True)
        if done.returncode != 0:
            raise PageError(f"it ended with {done.returncode}:\n{output[-4000:]}")
        for part, wanted in PRINTS.items():
            if part in text and not re.search(wanted, output):
                raise PageError(f"it printed nothing like {wanted!r}:\n{output[-4000:]}")

    def serve(self, text: str) -> None:
        """Start a gateway in the background, in place of the one before, and wait until it can serve."""
        self.stop("gateway")
        if "--engine" in text:
            for address in self.engines.values():
                port = address.rpartition(":")[2]
                self.start(f"engine-{port}", f"agentserve engine --port {port}", f"http://{address}/health")
        self.start("gateway", text, f"http://127.0.0.1:{self.port}/readyz")

    def start(self, name: str, text: str, ready: str) -> None:
        """A command in the background, with a log of its own, once `ready` answers."""
        began = time.monotonic()
        log = self.logs / f"{name}.log"
        with log.open("wb") as out:
            self.running[name] = subprocess.Popen(
                ["bash", "-c", text],
                cwd=self.clone,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not answers(ready):
            ended = self.running[name].poll()
            if ended is not None or time.monotonic() - began > ANSWER_S_MAX:
                raise PageError(
                    f"{name} does not answer at {ready} (exit {ended}):\n{log.read_text()[-4000:]}"
                )
            time.sleep(0.2)
        print(f"   [{name} answers after {time.monotonic() - began:.1f} s]", flush=True)

    def stop(self, name: str) -> None:
        """End what was started under this name, with all that it started."""
        process = self.running.pop(name, None)
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S_MAX)
                return

    def settings(self, text: str, line: int) -> None:
        """A settings file of the page is one that the gateway takes."""
        print(f"== README.md:{line}: settings, read back", flush=True)
        file = self.logs / "example.toml"
        file.write_text(text, encoding="utf-8")
        self.run(f"agentserve up --config {shlex.quote(str(file))} --print-config")


@contextlib.contextmanager
def stranger(home: Path) -> Iterator[Stranger]:
    """A fresh clone of what is committed; all that was started in it is ended."""
    one = Stranger(home)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(one.clone)], check=True, timeout=COMMAND_S_MAX)
    stand_in = home / "bin" / "codex"
    stand_in.parent.mkdir()
    stand_in.write_text(CODEX, encoding="utf-8")
    stand_in.chmod(0o755)
    try:
        yield one
    finally:
        for name in list(one.running):
            one.stop(name)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, from below those that the system gives to outgoing connections."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise PageError(f"there are no {count} free ports in {PORTS}")


def answers(url: str) -> bool:
    """Whether `url` answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    """Follow the page; 1 when a command of it fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs.readme", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the clone and its logs where they are")
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="agentserve-readme-"))
    began = time.monotonic()
    followed = 0
    try:
        with stranger(home) as one:
            page = one.clone / "README.md"
            for command in commands(page):
                followed += 1
                try:
                    one.follow(command)
                except (PageError, subprocess.TimeoutExpired) as error:
                    print(f"FAILED {page.name}:{command.line}: {command.text}\n{error}", file=sys.stderr)
                    return 1
            for block in blocks(page):
                if block.language == "toml":
                    one.settings(block.text, block.line)
    finally:
        if args.keep:
            print(f"kept: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    print(f"README.md: {followed} commands in {time.monotonic() - began:.0f} s; all that were run succeeded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
