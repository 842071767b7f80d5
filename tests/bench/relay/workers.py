"""What worker processes take off the scheduler's: processor time by process, for a call and for an event of a stream.

    python -m tests.bench.relay.workers [--seconds 8] [--workers 1 --workers 2] [--json FILE]

Rule: processor time, not speed: a machine with few cores cannot show what many would carry, but what each process
spends on a call and on an event says when the first of them is full. A stream here is a call and 200 events, one every
10 ms, as a model makes them.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.relay.run import EVENTS, HERE, ready
from tests.bench.relay.targets import TICKS_S, free_port, started

CASES = {"calls": ("json", 32), "streams": ("sse", 128)}
PACE_US = 10_000
BODY_BYTES = 1000
PATH = "/p/bench-%d/v1/chat/completions"


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="workers bench")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--workers", type=int, action="append", default=[], help="1 is a single process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="agentserve-bench-") as name:
        folder = Path(name)
        for source in ("engine", "load"):
            built = ["cc", "-O2", "-w", "-o", str(folder / source), str(HERE / f"{source}.c")]
            subprocess.run(built, check=True)
        engine = free_port()
        command = [str(folder / "engine"), str(engine), str(EVENTS), str(PACE_US)]
        with started(command, engine, core=1, log=folder / "engine.log"):
            rows = [measure(folder, engine, n, args.seconds) for n in args.workers or [1, 2]]
    for row in rows:
        print("  ".join(f"{name} {value:,.1f}" for name, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measure(folder: Path, engine: int, workers: int, seconds: float) -> dict[str, float]:
    """One gateway in both cases: microseconds of the scheduler's process and of its workers'."""
    port = free_port()
    command = [
        sys.executable, "-m", "agentserve.cli", "up", "--port", str(port), "--engine", f"http://127.0.0.1:{engine}",
        "--workers", str(workers), "--store", f"sqlite+aiosqlite:///{folder}/{port}.db", "--log-level", "warning",
    ]  # fmt: skip
    row: dict[str, float] = {"workers": workers}
    with started(command, port, core=0, log=folder / "up.log") as process:
        ready(port, PATH)
        for case, (mode, connections) in CASES.items():
            before = spent_s(process.pid)
            load = [
                str(folder / "load"),
                str(port),
                str(connections),
                str(seconds),
                "0",
                mode,
                str(BODY_BYTES),
                PATH,
            ]
            done = subprocess.run(load, capture_output=True, text=True, timeout=seconds + 60, check=True)
            figures: dict[str, Any] = json.loads(done.stdout)
            after = spent_s(process.pid)
            count = max(figures["events"] if mode == "sse" else figures["requests"], 1)
            unit = "an event" if mode == "sse" else "a call"
            for who in ("scheduler", "workers"):
                row[f"{case}: {who}, us {unit}"] = (after[who] - before[who]) / count * 1e6
    return row


def spent_s(pid: int) -> dict[str, float]:
    """Processor seconds so far of the scheduler's process and of those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {"scheduler": _ticks(str(pid)) / TICKS_S, "workers": sum(map(_ticks, children)) / TICKS_S}


def _ticks(pid: str) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    # by a timeout, say: what was started ends with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
