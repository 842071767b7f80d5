"""Run the same agents through every router, one after the other, and keep the figures.

    python -m tests.bench.peers.run --peers DIR --out FILE [--workload coding] [--workload weka=TRACE] [--seed 21]

Rule: every arm gets fresh engines, the same programs in the same order, and the machine to itself. What FILE holds
already is not run again, so that a run can be ended and taken up. Processor time of every process is kept beside the
figures: an arm whose router, engines or client were short of it measured this machine, not the router.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from agentserve.cli import stage
from agentserve.cli.crowd import CHAT, Crowd, Door
from agentserve.cli.trials import progress_bar
from agentserve.engine import profile
from agentserve.errors import AgentServeError
from agentserve.sim.programs import Workload
from agentserve.sim.report import Figures, summarise
from agentserve.sim.run import alone_s
from tests.bench.peers.arms import ARMS, Arm, Place, emulated, opened
from tests.bench.peers.programs import SETTINGS, Setting, concurrency, programs

CPU_SHARE_MAX = 0.6
CELL_S_MAX = 300.0  # an arm that takes longer has stalled
READY_S_MAX = 60.0
ERROR_CHARS = 400
TICKS_S = os.sysconf("SC_CLK_TCK")
KEPT = (
    "programs", "steps", "makespan_s", "jct_mean_s", "jct_p50_s", "jct_p95_s", "ttft_mean_s", "steps_per_min",
    "cached_share", "reprefilled_tokens", "slowdown_mean", "failed",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="where they are installed")
    parser.add_argument("--out", type=Path, required=True, help="figures as JSON; added to")
    parser.add_argument(
        "--workload",
        action="append",
        help="coding, chains or weka=FILE; may stand again; default the first two",
    )
    parser.add_argument("--seed", type=int, action="append", help="may stand again; default 21, 22, 23")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="may stand again; default all")
    parser.add_argument("--programs", type=int, help="fewer of them, for a look")
    args = parser.parse_args(argv)
    cells = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
    for seed in args.seed or [21, 22, 23]:
        for text in args.workload or ["coding", "chains"]:
            for name in args.arm or ARMS:
                if any((c["workload"], c["seed"], c["arm"]) == (_name(text), seed, name) for c in cells):
                    continue
                cells.append(_cell(ARMS[name], text, seed, args))
                args.out.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
                _say(cells[-1])
    return 0


def _name(text: str) -> str:
    return text.partition("=")[0]


def _cell(arm: Arm, text: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One arm on one workload with one seed: figures, or why there are none."""
    name, _, file = text.partition("=")
    setting = SETTINGS[name]
    work = programs(name, setting, seed=seed, file=Path(file) if file else None)
    if args.programs:
        roots = work.roots[: args.programs + 1]
        end = roots[-1] if len(roots) > args.programs else len(work.programs)
        work = Workload(name=name, programs=work.programs[:end], seed=seed, shared_tokens=work.shared_tokens)
    cell: dict[str, Any] = {"workload": name, "seed": seed, "arm": arm.name, "load": os.getloadavg()[0]}
    if not arm.installed(args.peers.resolve()):
        return cell | {"error": "not installed"}
    try:
        return cell | asyncio.run(_measured(arm, work, setting, args.peers.resolve()))
    except (AgentServeError, httpx.HTTPError, TimeoutError, OSError) as error:
        return cell | {"error": f"{type(error).__name__}: {error}"[-ERROR_CHARS:]}


async def _measured(arm: Arm, work: Workload, setting: Setting, peers: Path) -> dict[str, Any]:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        engines = [
            await stack.enter_async_context(
                stage.engine(
                    profile=setting.profile, time_scale=setting.time_scale, kv_tokens=setting.kv_tokens
                )
            )
            for _ in range(setting.engines)
        ]
        urls = [e.url for e in engines]
        place = Place(
            peers=peers, folder=folder, engines=urls, port=stage.free_port(), pace=emulated(setting)
        )
        door, router = await stack.enter_async_context(opened(arm, place))
        await _answers(door)
        pids = {"router": router, **{f"engine{i}": e.pid for i, e in enumerate(engines)}}
        before = {name: cpu_s(pid) for name, pid in pids.items() if pid is not None}
        ours, began = time.process_time(), time.monotonic()
        crowd = Crowd(work, door, model="emulated", scale=setting.time_scale)
        many = concurrency(work, setting)
        with progress_bar(f"{arm.name}, {work.name} seed {work.seed}", len(work.programs)) as tick:
            async with asyncio.timeout(CELL_S_MAX):
                result = await crowd.run(many, tick)
        took = time.monotonic() - began
        cpu = {name: (cpu_s(pids[name]) - at) / took for name, at in before.items()}
        cpu["client"] = (time.process_time() - ours) / took
    engine = profile(setting.profile)
    figures: Figures = summarise(work, result, lambda plan: alone_s(plan, engine), {})
    return {
        "concurrency": many,
        "wall_s": round(took, 1),
        "cpu": {name: round(share, 3) for name, share in cpu.items()},
        "figures": {name: round(float(figures[name]), 4) for name in KEPT},
    }


async def _answers(door: Door) -> None:
    """Wait for a reply from an engine, through whatever stands before it."""
    asked = {"model": "emulated", "max_tokens": 1, "messages": [{"role": "user", "content": "ready?"}]}
    async with httpx.AsyncClient(timeout=10.0) as client, asyncio.timeout(READY_S_MAX):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                headers = {"authorization": "Bearer sk-peers"}
                reply = await client.post(door.url(0, 0) + CHAT, json=asked, headers=headers)
                if reply.status_code == 200:
                    return
            await asyncio.sleep(0.2)


def cpu_s(pid: int | None) -> float:
    """Processor seconds of a process and its descendants so far."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS_S
    total = 0.0
    for each, seconds in used.items():
        above: int | None = each
        while above is not None and above != pid:
            above = parents.get(above)
        total += seconds if above == pid else 0.0
    return total


def _say(cell: dict[str, Any]) -> None:
    head = f"{cell['workload']:<8}{cell['seed']:<4}{cell['arm']:<22}"
    if "error" in cell:
        print(f"{head}{cell['error']}", flush=True)
        return
    f, cpu = cell["figures"], cell["cpu"]
    short = [name for name, share in cpu.items() if share > CPU_SHARE_MAX]
    print(
        f"{head}jct {f['jct_mean_s']:7.1f} p95 {f['jct_p95_s']:7.1f} ttft {f['ttft_mean_s']:6.2f} "
        f"steps/min {f['steps_per_min']:6.1f} cached {f['cached_share']:.2f} failed {f['failed']:.0f} "
        f"wall {cell['wall_s']:.0f} s cpu {' '.join(f'{n} {s:.2f}' for n, s in cpu.items())} load {cell['load']:.1f}"
        + (f"  SHORT OF CPU: {', '.join(short)}" if short else ""),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
