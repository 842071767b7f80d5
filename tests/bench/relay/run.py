"""Measure proxies side by side and write figures as ratios to nginx of the same run.

    python -m tests.bench.relay.run [--seconds 3] [--rounds 2] [--only NAME] [--case WORDS] [--peers DIR]
                                    [--json FILE] [--plot FILE]

DIR holds one environment for each peer (`python -m tests.bench.peers.install DIR`); what is not there is left out.

Rule: only ratios inside one run mean anything, so every proxy is measured in every round, one after the other, on the
same core. The fake engine and the load are C, compiled on the spot, so that they are never what is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.relay.targets import TARGETS, Place, Target, cpu_s, free_port, pinned, rss_mb, started

HERE = Path(__file__).parent
EVENTS = 200
READY_S = 60.0
KB = 1000
# name -> mode, connections, body bytes
CASES = {
    "32 connections, 1 kB": ("json", 32, 1 * KB),
    "32 connections, 32 kB": ("json", 32, 32 * KB),
    "8 connections, 400 kB": ("json", 8, 400 * KB),
    "1 connection, 1 kB": ("json", 1, 1 * KB),
    "32 streams": ("sse", 32, 1 * KB),
}
Figures = dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="relay bench")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--warm", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", action="append", default=[], help="a proxy; may stand again")
    parser.add_argument("--case", action="append", default=[], help="words of a case; may stand again")
    parser.add_argument("--peers", type=Path, help="a folder with one environment for each peer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(argv)
    if shutil.which("cc") is None:
        print("a C compiler (`cc`) is needed for the engine and the load", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="agentserve-bench-") as name:
        result = measure(Path(name), args)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        args.plot.write_text(plot(result))
    return 0


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All rounds, all proxies, all cases: the median of the rounds."""
    for source in ("engine", "load"):
        binary = str(folder / source)
        subprocess.run(["cc", "-O2", "-w", "-o", binary, str(HERE / f"{source}.c")], check=True)
    seen: dict[str, dict[str, list[Figures]]] = {}
    engine_port = free_port()
    command = [str(folder / "engine"), str(engine_port), str(EVENTS)]
    with started(command, engine_port, core=1, log=folder / "engine.log"):
        for round_number in range(args.rounds):
            for case in chosen(args):
                seen.setdefault("direct", {}).setdefault(case, []).append(
                    load(folder, engine_port, case, args, None)
                )
            for target in TARGETS:
                if args.only and target.name not in args.only and target.name != "nginx":
                    continue
                try:
                    found = one(folder, target, engine_port, args)
                except (RuntimeError, subprocess.SubprocessError) as error:
                    print(f"{target.name}: {error}", file=sys.stderr)
                    continue
                if not found and round_number == 0:
                    print(f"{target.name} is not installed: {target.install}", file=sys.stderr)
                for case, figures in found.items():
                    seen.setdefault(target.name, {}).setdefault(case, []).append(figures)
            print(f"round {round_number + 1} of {args.rounds} done", file=sys.stderr)
    medians = {name: {case: median(rounds) for case, rounds in cases.items()} for name, cases in seen.items()}
    return {"seconds": args.seconds, "rounds": args.rounds, "figures": medians, "ratios": ratios(medians)}


def chosen(args: argparse.Namespace) -> list[str]:
    """The cases that are measured."""
    return [case for case in CASES if not args.case or any(words in case for words in args.case)]


def one(folder: Path, target: Target, engine_port: int, args: argparse.Namespace) -> dict[str, Figures]:
    """One proxy in all cases."""
    place = Place(port=free_port(), engine=engine_port, folder=folder, peers=args.peers)
    command = target.command(place)
    if command is None:
        return {}
    found = {}
    with started(
        command, place.port, core=0, log=folder / "proxy.log", environment=target.environment
    ) as process:
        ready(place.port, target.path)
        for case in chosen(args):
            found[case] = load(folder, place.port, case, args, process, path=target.path)
    return found


def ready(port: int, path: str) -> None:
    """Wait until a request is answered: some listen before they know their engine."""
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "ready?"}]})
    headers = {"authorization": "Bearer bench", "content-type": "application/json"}
    until = time.monotonic() + READY_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("POST", path.replace("%d", "0"), body, headers)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        if time.monotonic() > until:
            raise RuntimeError("it does not answer")
        time.sleep(0.2)


def load(
    folder: Path,
    port: int,
    case: str,
    args: argparse.Namespace,
    process: subprocess.Popen[bytes] | None,
    *,
    path: str = "/v1/chat/completions",
) -> Figures:
    """One measurement. Processor time is read over warming and measuring, and counted by all that was done."""
    mode, connections, body = CASES[case]
    command = [str(folder / "load"), str(port), str(connections), str(args.seconds), str(args.warm), mode]
    before = cpu_s(process) if process is not None else 0.0
    done = subprocess.run(
        pinned(1, [*command, str(body), path]),
        capture_output=True,
        text=True,
        timeout=args.seconds + args.warm + 60,
    )
    figures: Figures = json.loads(done.stdout)
    if process is not None:
        share = args.seconds / (args.seconds + args.warm)
        spent = (cpu_s(process) - before) * share
        figures["cpu_us_per_request"] = spent / max(figures["requests"], 1) * 1e6
        if figures["events"]:
            figures["cpu_us_per_event"] = spent / figures["events"] * 1e6
        figures["rss_mb"] = rss_mb(process)
    return figures


def median(rounds: list[Figures]) -> Figures:
    """Of each figure over the rounds."""
    return {key: statistics.median(r[key] for r in rounds if key in r) for key in rounds[0]}


def ratios(figures: dict[str, dict[str, Figures]]) -> dict[str, dict[str, float]]:
    """What the targets are stated in."""
    nginx, direct = figures.get("nginx"), figures["direct"]
    found: dict[str, dict[str, float]] = {}
    for name, cases in figures.items():
        if name == "direct":
            continue
        made = found[name] = {}
        single, streams = "1 connection, 1 kB", "32 streams"
        if single in cases:
            for centile in ("p50", "p99"):
                made[f"added {centile}, us"] = (
                    cases[single][f"{centile}_us"] - direct[single][f"{centile}_us"]
                )
        if streams in cases:
            made["cpu us per event"] = cases[streams].get("cpu_us_per_event", 0.0)
        for case, figures_of in cases.items():
            if case == single or nginx is None:
                continue
            theirs = nginx[case]
            if case == streams:
                made["events/s of nginx"] = figures_of["events_s"] / max(theirs["events_s"], 1e-9)
                continue
            made[f"{case}: requests/s of nginx"] = figures_of["rps"] / max(theirs["rps"], 1e-9)
            made[f"{case}: cpu per request of nginx"] = figures_of["cpu_us_per_request"] / max(
                theirs["cpu_us_per_request"], 1e-9
            )
    return found


def show(result: dict[str, Any]) -> None:
    """The ratios as a table."""
    for name, made in result["ratios"].items():
        print(name)
        for what, value in made.items():
            print(f"  {what:<55} {value:10.3f}")


def plot(result: dict[str, Any]) -> str:
    """Requests/s at 32 connections and 1 kB, of nginx, as bars."""
    key = "32 connections, 1 kB: requests/s of nginx"
    rows = [(name, made.get(key, 0.0)) for name, made in result["ratios"].items()]
    top = max([value for _, value in rows], default=1.0) or 1.0
    bars = []
    for i, (name, value) in enumerate(rows):
        y = 30 + 26 * i
        bars.append(
            f'<text x="8" y="{y + 13}">{name}</text><rect x="220" y="{y}" width="{360 * value / top:.1f}" height="18"/>'
            f'<text x="{228 + 360 * value / top:.1f}" y="{y + 13}">{value:.3f}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="660" height="{50 + 26 * len(rows)}" '
        'font-family="system-ui" font-size="13"><style>rect{fill:#2f6feb}text{fill:#57606a}</style>'
        f'<text x="8" y="18">requests/s of nginx, one core, 32 connections, 1 kB</text>{"".join(bars)}</svg>\n'
    )


if __name__ == "__main__":
    # by a timeout, say: what was started ends with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
