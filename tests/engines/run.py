"""Real engines, installed and started on the spot, held to the adapters' checks and examined by `doctor`.

    python tests/engines/run.py                       # every engine; `make test-engines`
    python tests/engines/run.py vllm                  # one of them
    python tests/engines/run.py --url vllm=http://127.0.0.1:9100   # one that runs already

One engine runs at a time, on the loopback. Exit status 1 if any check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agentserve_adapters.detect import installed

from agentserve.cli.doctor import examine, render
from agentserve.config import EngineSettings
from agentserve.ports import EngineOptions
from tests.engines.checks import CHECKS, Bench, Skip
from tests.engines.installs import CACHE, INSTALLS, Install, model, prepare

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 900.0


@contextmanager
def serving(install: Install) -> Iterator[tuple[str, Path]]:
    """The engine's address while it runs, and its model's files."""
    prepare(install)
    files = model(install)
    port = free_ports()
    environ = {**os.environ, **install.variables, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    log_file = CACHE / f"{install.name}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            install.command(install.env, files, port),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log_file)
        yield url, files
    finally:
        stop(process)


def wait_for(url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    """Until it lists its models."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode}; see {log_file}")
        try:
            if httpx.get(f"{url}/v1/models", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"it did not answer within {START_TIMEOUT_S:g} s; see {log_file}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """The engine and the processes that it started itself."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
        return


def free_ports() -> int:
    """A port with two free ones behind it, for events and their replay."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port > 65_000:
            continue
        try:
            for other in (port, port + 1, port + 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", other))
        except OSError:
            continue
        return port


async def check(
    name: str, kind: str, url: str, models: tuple[str, ...] = ()
) -> list[tuple[str, str, str, str]]:
    """Every check's verdict: engine, check, passed or failed or skipped, what was seen."""
    adapter = installed()[kind](EngineOptions(id=name, kind=kind, url=url, models=models))
    bench = Bench(url=url, kind=kind, adapter=adapter)
    rows = []
    await adapter.start()
    try:
        for one in CHECKS:
            sentence = one.__name__.replace("_", " ")
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    rows.append((name, sentence, "passed", await one(bench)))
            except Skip as why:
                rows.append((name, sentence, "skipped", str(why)))
            except AssertionError as exc:
                rows.append((name, sentence, "FAILED", str(exc)))
            except Exception as exc:
                traceback.print_exc()
                rows.append((name, sentence, "FAILED", f"{type(exc).__name__}: {exc}"))
            print(f"  {rows[-1][2]:<8} {sentence}: {rows[-1][3]}", flush=True)
        finding = await examine(EngineSettings(id=name, url=url, models=models))
        print(render(finding))
        verdict = "passed" if finding.usable and finding.kind == kind else "FAILED"
        rows.append((name, "doctor finds it usable", verdict, finding.trouble))
    finally:
        await adapter.stop()
    return rows


def table(rows: list[tuple[str, str, str, str]]) -> str:
    """A Markdown table of all verdicts."""
    lines = ["| engine | check | verdict | seen |", "|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", nargs="*", choices=[*INSTALLS, []], metavar="ENGINE")
    parser.add_argument(
        "--url", action="append", default=[], metavar="ENGINE=URL", help="one that runs already"
    )
    parser.add_argument("--model", action="append", default=[], help="its model, where it lists none")
    args = parser.parse_args()
    running = dict(given.split("=", 1) for given in args.url)
    names = args.engines or list(running) or list(INSTALLS)
    rows: list[tuple[str, str, str, str]] = []
    for name in names:
        install = INSTALLS[name]
        print(f"{name}:", flush=True)
        try:
            if name in running:
                rows += asyncio.run(check(name, install.kind, running[name], tuple(args.model)))
            else:
                with serving(install) as (url, files):
                    models = () if install.names_model else (str(files),)
                    rows += asyncio.run(check(name, install.kind, url, models))
        except (RuntimeError, OSError, subprocess.SubprocessError) as exc:
            rows.append((name, "installs and starts", "FAILED", str(exc)))
            print(f"  FAILED   {exc}", flush=True)
    print("\n" + table(rows))
    return 1 if any(row[2] == "FAILED" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
