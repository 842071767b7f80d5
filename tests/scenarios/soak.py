"""Thousands of programs with growing conversations on two emulated engines; nothing may leak.

    python -m tests.scenarios.soak [--programs 2048] [--steps 10] [--minutes 0] [--idle 25] [--time-scale 50]

Each program's steps extend its conversation by the answer before; some clients leave in mid-stream and send the step
again. With `--minutes` programs that ended are replaced until the time is over. Nobody says that they ended: the
gateway is told to forget them after `--idle` seconds, not half an hour, so that what it keeps is level in the run.

All programs must finish without an error, and the gateway's memory must be level: once as many programs have ended
and been forgotten as there are places, and for as long as every place is taken, the last quarter of the time may hold
hardly more than the one before. A run that is too short to tell says so. Prints figures; exit status 1 when a promise
was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from agentserve.errors import EngineError
from agentserve.live.upstream import Deadlines
from agentserve.live.upstream.lean import LeanUpstream
from tests.scenarios.stage import JSON, Process, counters_at_rest, emulated, gateway

PATIENCE = Deadlines(connect_s=30.0, first_byte_s=900.0, idle_s=300.0, overall_s=1800.0)
SAMPLE_S = 2.0
LEVEL_S = 60.0  # what is judged is at least as long
GROWTH_MAX = 0.02  # from the third quarter of it to the last
FORGETS_S = 15.0  # a program that fell silent is forgotten so long after its time, at most


class Soak:
    """What was seen."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.finished = 0
        self.trouble: list[str] = []
        self.samples: list[tuple[float, float, int]] = []  # seconds, MB, files
        self.full_until = 0.0  # since then programs that end are not replaced
        self.warm_at: float | None = None  # since when as many came and went as there are places


async def program(
    name: str, client: LeanUpstream, soak: Soak, rng: random.Random, args: argparse.Namespace
) -> None:
    """One program from its first step to its last."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a careful agent. " * 20},
        {"role": "user", "content": f"Task {name}: " + " ".join(f"w{rng.randrange(999)}" for _ in range(60))},
    ]
    for step in range(args.steps):
        streamed = rng.random() < 0.5
        body = json.dumps(
            {
                "model": "emulated",
                "messages": messages,
                "stream": streamed,
                "max_tokens": rng.randrange(8, 48),
            }
        ).encode()
        if streamed and rng.random() < args.leave:
            await ask(client, body, soak, leaves=True)
        answer = await ask(client, body, soak, leaves=False)
        if answer is None:
            return
        messages.append({"role": "assistant", "content": text_of(answer, streamed=streamed)})
        messages.append({"role": "user", "content": f"observation {step}: " + "x " * rng.randrange(10, 80)})
    soak.finished += 1


async def ask(client: LeanUpstream, body: bytes, soak: Soak, *, leaves: bool) -> bytes | None:
    """One step; None when it failed."""
    try:
        reply = await client.send("POST", "/v1/chat/completions", JSON, body, deadlines=PATIENCE)
        data = b""
        try:
            while not reply.done:
                data += await reply.read()
                if leaves:
                    soak.seen["left"] += 1
                    return None
        finally:
            reply.close()
    except EngineError as error:
        soak.trouble.append(str(error))
        return None
    if reply.status != 200 or b'"error"' in data[:20]:
        soak.trouble.append(f"{reply.status}: {data[:120]!r}")
        return None
    soak.seen["complete"] += 1
    return data


def text_of(data: bytes, *, streamed: bool) -> str:
    """What the model said."""
    if not streamed:
        return str(json.loads(data)["choices"][0]["message"]["content"])
    parts = []
    for line in data.split(b"\n"):
        if line.startswith(b"data: {"):
            parts += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
    return "".join(parts)


async def watch(process: Process, soak: Soak, began: float) -> None:
    """Memory and files, now and then."""
    loop = asyncio.get_running_loop()
    while True:
        soak.samples.append((loop.time() - began, process.rss_mb(), process.files()))
        await asyncio.sleep(SAMPLE_S)


async def run(args: argparse.Namespace, folder: Path) -> int:
    """The whole soak."""
    loop, soak, rng = asyncio.get_running_loop(), Soak(), random.Random(args.seed)
    flags = ("--time-scale", str(args.time_scale))
    async with emulated(folder, *flags) as one, emulated(folder, *flags) as two:
        urls = [f"http://127.0.0.1:{engine.port}" for engine in (one, two)]
        async with gateway(urls, folder, f"scheduler.program_idle_s={args.idle}") as process:
            client = LeanUpstream(f"http://127.0.0.1:{process.port}", connections_max=args.programs + 64)
            began = loop.time()
            watching = asyncio.create_task(watch(process, soak, began))
            until = began + args.minutes * 60.0
            soak.full_until = until - began
            count = 0

            async def lane() -> None:
                nonlocal count
                while True:
                    count += 1
                    before = soak.finished
                    await program(f"p{count}", client, soak, random.Random(rng.random()), args)
                    if soak.finished == before:
                        await asyncio.sleep(1.0)  # as a client does that was refused
                    if soak.warm_at is None and soak.finished >= args.programs:
                        soak.warm_at = loop.time() - began + args.idle + FORGETS_S
                    if loop.time() >= until:
                        return

            await asyncio.gather(*[lane() for _ in range(args.programs)])
            elapsed = loop.time() - began
            rest = await counters_at_rest(process.port)
            watching.cancel()
            await client.stop()
            await asyncio.sleep(1.0)
            files_after, cpu_s = process.files(), process.cpu_s()
    return judge(soak, args, count, elapsed, rest, files_after, cpu_s)


def growth(soak: Soak) -> float | None:
    """By what share the memory of the last quarter is above that of the one before; None when that is too short."""
    warm_at = soak.full_until if soak.warm_at is None else soak.warm_at
    judged = [mb for at, mb, _ in soak.samples if warm_at <= at <= soak.full_until]
    if len(judged) * SAMPLE_S < LEVEL_S:
        return None
    half, quarter = len(judged) // 2, len(judged) // 4
    return round(median(judged[-quarter:]) / median(judged[half : len(judged) - quarter]) - 1.0, 4)


def judge(
    soak: Soak,
    args: argparse.Namespace,
    count: int,
    elapsed: float,
    rest: dict[str, Any],
    files: int,
    cpu_s: float,
) -> int:
    """Figures, and whether they are good."""
    steps = sum(soak.seen.values())
    figures = {
        "seed": args.seed,
        "programs": count,
        "finished": soak.finished,
        "steps": steps,
        "seen": dict(soak.seen),
        "errors": len(soak.trouble),
        "seconds": round(elapsed, 1),
        "steps_per_s": round(steps / elapsed, 1),
        "gateway_cpu_ms_per_step": round(cpu_s / max(steps, 1) * 1e3, 2),
        "warm_at_s": soak.warm_at and round(soak.warm_at, 1),
        "rss_mb": [round(mb) for _, mb, _ in soak.samples[:: max(len(soak.samples) // 24, 1)]],
        "rss_growth": growth(soak),
        "rss_mb_end": round(soak.samples[-1][1], 1) if soak.samples else 0.0,
        "rss_mb_max": round(max((mb for _, mb, _ in soak.samples), default=0.0), 1),
        "files_max": max((files for _, _, files in soak.samples), default=0),
        "files_after": files,
        "at_rest": rest,
    }
    print(json.dumps(figures, indent=1))
    for line in soak.trouble[:10]:
        print("TROUBLE", line)
    grown = growth(soak)
    if grown is None:
        print("the run is too short to say whether memory is level")
    level = grown is None or grown <= GROWTH_MAX
    good = soak.finished == count and not soak.trouble and level and rest["scheduler"] == "ok"
    return 0 if good and not any(rest[k] for k in ("steps_waiting", "steps_running", "requests_open")) else 1


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--programs", type=int, default=2048, help="at once")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=0.0, help="begin new programs for so long")
    parser.add_argument("--idle", type=float, default=25.0, help="seconds until a silent program is over")
    parser.add_argument("--time-scale", type=float, default=50.0)
    parser.add_argument(
        "--leave", type=float, default=0.03, help="share of streamed steps whose client leaves"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentserve-soak-") as folder:
        status = asyncio.run(run(args, Path(folder)))
        log = Path(folder, "gateway.log")
        if status and log.exists():
            print(log.read_text()[-3000:], file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
