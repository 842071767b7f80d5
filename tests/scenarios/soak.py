"""Thousands of programs with growing conversations on two emulated engines; nothing may leak.

    python -m tests.scenarios.soak [--programs 2048] [--steps 10] [--minutes 0] [--idle 25] [--time-scale 50]

Each program's steps extend its conversation by the answer before; some clients leave in mid-stream and send the step
again. With `--minutes` programs that ended are replaced until the time is over. Nobody says that they ended: the
gateway is told to forget them after `--idle` seconds, not half an hour, so that what it keeps is level in the run.

All programs must finish without an error. The gateway's memory must be flat after the first minute: the last quarter
minute of the load is held against the end of the first minute, and the last quarter of the time since then against the
one before it. Afterwards, when the clients are gone and the programs forgotten, it must have let go of every program
and every client's connection, and hold no more connections to engines than at the start: probes, and what they left;
only the store may have opened a few files more. A run that is too short to tell says so. Prints the
curve while it runs, then figures; exit status 1 when a promise was broken.
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
from tests.scenarios.descriptors import descriptors
from tests.scenarios.stage import JSON, Process, counters_at_rest, emulated, gateway

PATIENCE = Deadlines(connect_s=30.0, first_byte_s=900.0, idle_s=300.0, overall_s=1800.0)
SAMPLE_S = 2.0
CURVE_S = 15.0
FIRST_S = 60.0  # memory may grow for so long
LEVEL_S = 60.0  # and what is judged after it is at least as long
SINCE_FIRST_MAX = 1.1  # times what it was after that first minute
GROWTH_MAX = 0.02  # from the third quarter of the time since then to the last
STORE_FILES = 8  # that it opens when it is first read and written at once
FORGETS_S = 20.0  # a program that fell silent is forgotten so long after its time, at most


class Soak:
    """What was seen."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.finished = 0
        self.trouble: list[str] = []
        self.samples: list[tuple[float, float, int]] = []  # seconds, MB, files
        self.full_until = 0.0  # since then programs that end are not replaced
        self.at_start: dict[str, int] = {}  # the gateway's file descriptors, by what they are
        self.at_peak: dict[str, int] = {}
        self.afterwards: dict[str, int] = {}

    @property
    def judged(self) -> list[float]:
        """Memory since the first minute was over, for as long as every place was taken."""
        return [mb for at, mb, _ in self.samples if FIRST_S <= at <= self.full_until]

    def since_first(self) -> float | None:
        """How many times its size at the end of the first minute it has in the end; None when that is too short."""
        few = int(CURVE_S / SAMPLE_S)
        first = [mb for at, mb, _ in self.samples if at < FIRST_S][-few:]
        if len(self.judged) * SAMPLE_S < LEVEL_S:
            return None
        return round(median(self.judged[-few:]) / median(first), 3)

    @property
    def files_open(self) -> bool:
        """Does it hold files that it should not when nobody asks any more?"""
        start, after = self.at_start, self.afterwards
        more = sum(after.values()) > sum(start.values()) + STORE_FILES
        return more or after.get("clients", 0) > 0 or after.get("engines", 0) > start.get("engines", 0)

    def growth(self) -> float | None:
        """By what share the memory of the last quarter is above that of the one before; None when too short."""
        judged = self.judged
        if len(judged) * SAMPLE_S < LEVEL_S:
            return None
        half, quarter = len(judged) // 2, len(judged) // 4
        return round(median(judged[-quarter:]) / median(judged[half : len(judged) - quarter]) - 1.0, 4)


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


async def watch(process: Process, engines: list[int], soak: Soak, began: float) -> None:
    """Memory and files, now and then; the curve is printed as it comes."""
    loop = asyncio.get_running_loop()
    told_at = -CURVE_S
    while True:
        at, mb, files = loop.time() - began, process.rss_mb(), process.files()
        if files > max((seen for _, _, seen in soak.samples), default=0):
            soak.at_peak = descriptors(process.popen.pid, process.port, engines)
        soak.samples.append((at, mb, files))
        if at >= told_at + CURVE_S:
            told_at = at
            print(f"{at:6.0f} s {mb:7.1f} MB {files:6} files {soak.finished:7} finished", flush=True)
        await asyncio.sleep(SAMPLE_S)


async def let_go(
    process: Process, engines: list[int], soak: Soak, args: argparse.Namespace
) -> dict[str, Any]:
    """The gateway's summary when nobody asks any more: once all is forgotten and closed, or the time for it is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + args.idle + FORGETS_S
    while True:
        rest = await counters_at_rest(process.port)
        soak.afterwards = descriptors(process.popen.pid, process.port, engines)
        if not (rest["programs"] or soak.files_open) or loop.time() >= until:
            return rest
        await asyncio.sleep(1.0)


async def run(args: argparse.Namespace, folder: Path) -> int:
    """The whole soak."""
    loop, soak, rng = asyncio.get_running_loop(), Soak(), random.Random(args.seed)
    flags = ("--time-scale", str(args.time_scale))
    async with emulated(folder, *flags) as one, emulated(folder, *flags) as two:
        engines = [one.port, two.port]
        urls = [f"http://127.0.0.1:{port}" for port in engines]
        async with gateway(urls, folder, f"scheduler.program_idle_s={args.idle}") as process:
            client = LeanUpstream(f"http://127.0.0.1:{process.port}", connections_max=args.programs + 64)
            soak.at_start = descriptors(process.popen.pid, process.port, engines)
            began = loop.time()
            watching = asyncio.create_task(watch(process, engines, soak, began))
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
                    if loop.time() >= until:
                        return

            await asyncio.gather(*[lane() for _ in range(args.programs)])
            elapsed = loop.time() - began
            watching.cancel()
            await client.stop()
            rest = await let_go(process, engines, soak, args)
            cpu_s, rss_mb = process.cpu_s(), process.rss_mb()
    return judge(soak, args, count, elapsed, rest, cpu_s, rss_mb)


def judge(
    soak: Soak,
    args: argparse.Namespace,
    count: int,
    elapsed: float,
    rest: dict[str, Any],
    cpu_s: float,
    rss_mb: float,
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
        "rss_mb_start": round(soak.samples[0][1], 1),
        "rss_mb_max": round(max(mb for _, mb, _ in soak.samples), 1),
        "rss_mb_at_rest": round(rss_mb, 1),
        "rss_end_over_first_minute": soak.since_first(),
        "rss_growth_at_the_end": soak.growth(),
        "files_at_start": soak.at_start,
        "files_at_peak": soak.at_peak,
        "files_at_rest": soak.afterwards,
        "at_rest": rest,
    }
    print(json.dumps(figures, indent=1))
    for line in soak.trouble[:10]:
        print("TROUBLE", line)
    since, grown = soak.since_first(), soak.growth()
    broken = [
        f"{key}: {rest[key]}"
        for key in ("steps_waiting", "steps_running", "requests_open", "programs")
        if rest[key]
    ]
    if soak.finished != count or soak.trouble or rest["scheduler"] != "ok":
        broken.append("not every program finished without an error")
    if soak.files_open:
        broken.append("file descriptors stay open")
    if since is None or grown is None:
        print("the run is too short to say whether memory is flat after the first minute")
    elif since > SINCE_FIRST_MAX or grown > GROWTH_MAX:
        broken.append("memory is not flat after the first minute")
    for line in broken:
        print("BROKEN", line)
    return 1 if broken else 0


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
