"""Engines that are killed, restarted, stalled, cut and slow, under load, for minutes.

    python -m tests.scenarios.chaos [--minutes 5] [--programs 24] [--seed 1] [--workers 1]

Every client must get a complete answer or a clear error; no step may be executed again after a byte of it was sent;
nothing may hang; at the end everything that counts running things must be zero. Prints figures; exit status 1 when a
promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from agentserve.errors import EngineError
from agentserve.live.upstream import Deadlines
from agentserve.live.upstream.lean import LeanUpstream
from tests.scenarios.stage import JSON, counters_at_rest, gateway

HANG_S = 45.0  # no client waits longer than this for anything
PATIENCE = Deadlines(connect_s=5.0, first_byte_s=HANG_S, idle_s=HANG_S, overall_s=2 * HANG_S)
LIMITS = ("limits.first_byte_timeout_s=8", "limits.idle_stream_timeout_s=4", "limits.overall_timeout_s=40",
          "limits.queue_timeout_s=15", "limits.connect_timeout_s=2")  # fmt: skip
WORDS = 12


class Trial:
    """What engines did to each step and what its client saw."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[float, str]]] = {}  # step -> (when, name of the run)
        self.first_bytes: dict[str, float] = {}  # step -> when its client had a byte
        self.seen: Counter[str] = Counter()
        self.broken: list[str] = []


class Rogue:
    """An engine with a bad character."""

    def __init__(self, trial: Trial, rng: random.Random) -> None:
        self.trial = trial
        self.rng = rng
        self.port = 0
        self.mood = "well"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._runs = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def misbehave(self, until: float) -> None:
        """From one mood to the next."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            self.mood = self.rng.choice(
                ("well", "well", "well", "cuts", "stalls", "garbage", "busy", "silent", "dead")
            )
            if self.mood == "dead":
                await self.kill()
                await asyncio.sleep(self.rng.uniform(0.3, 4.0))
                await self.start()
                self.mood = "well"
            await asyncio.sleep(self.rng.uniform(0.5, 4.0))
        self.mood = "well"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = head.partition("content-length: ")[2].partition("\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if head.startswith("get"):
                    await self._list(writer, head)
                else:
                    await self._answer(json.loads(body), writer)
                await writer.drain()
        except (
            asyncio.IncompleteReadError,
            ConnectionError,
            asyncio.LimitOverrunError,
            asyncio.CancelledError,
        ):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _list(self, writer: asyncio.StreamWriter, head: str) -> None:
        if self.mood == "silent":
            await asyncio.sleep(HANG_S)
        listing = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"rogue"}]}'
        status = b"200 OK" if " /v1/models " in head or " /health " in head else b"404 Not Found"
        writer.write(b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                     % (status, len(listing), listing))  # fmt: skip

    async def _answer(self, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        step = str(body.get("user"))
        self._runs += 1
        run = f"{self.port}-{self._runs}"
        self.trial.runs.setdefault(step, []).append((asyncio.get_running_loop().time(), run))
        mood = self.mood if self.rng.random() < 0.7 else "well"
        if mood == "silent":
            await asyncio.sleep(HANG_S)
        if mood == "garbage":
            writer.write(b"\x00\x01 nonsense\r\n\r\n")
            raise ConnectionResetError
        if mood == "busy":
            writer.write(b"HTTP/1.1 503 X\r\ncontent-type: application/json\r\ncontent-length: 31\r\n\r\n"
                         b'{"error":{"message":"too busy"}}'[:31])  # fmt: skip
            return
        cut_at = self.rng.randrange(WORDS) if mood in ("cuts", "stalls") else WORDS + 1
        if body.get("stream") is not True:
            message = {"role": "assistant", "content": " ".join([run] * WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                % len(whole)
            )
            writer.write(whole if cut_at > WORDS else whole[: 10 * cut_at])
        else:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for i in range(min(cut_at, WORDS)):
                await self._event(writer, {"choices": [{"index": 0, "delta": {"content": f"{run} "}}]}, i)
            if cut_at > WORDS:
                await self._event(
                    writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, WORDS
                )
                writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
        if mood == "cuts":
            writer.transport.abort()
            raise ConnectionResetError
        if mood == "stalls" and cut_at <= WORDS:
            await asyncio.sleep(HANG_S)

    async def _event(self, writer: asyncio.StreamWriter, value: dict[str, object], i: int) -> None:
        data = b"data: " + json.dumps({"object": "chat.completion.chunk", **value}).encode() + b"\n\n"
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        await asyncio.sleep(0.005 if i else 0.02)


async def agent(name: str, port: int, trial: Trial, rng: random.Random, until: float) -> None:
    """A program that goes on for as long as there is time, and sometimes leaves in the middle of an answer."""
    loop = asyncio.get_running_loop()
    client = LeanUpstream(f"http://127.0.0.1:{port}")
    number = 0
    messages: list[dict[str, str]] = [{"role": "user", "content": f"I am {name}"}]
    while loop.time() < until:
        number += 1
        step = f"{name}/{number}"
        streamed, leaves = rng.random() < 0.7, rng.random() < 0.08
        body = json.dumps(
            {"model": "m", "user": step, "stream": streamed, "messages": messages[-20:]}
        ).encode()
        began = loop.time()
        try:
            async with asyncio.timeout(2 * HANG_S):
                outcome = await one(client, name, step, body, trial, streamed=streamed, leaves=leaves)
        except TimeoutError:
            outcome = "hung"
            trial.broken.append(f"{step}: hung for {loop.time() - began:.0f} s")
        trial.seen[outcome] += 1
        messages.append({"role": "user", "content": f"go on {number}"})
        await asyncio.sleep(rng.uniform(0.0, 0.1))
    await client.stop()


async def one(
    client: LeanUpstream, name: str, step: str, body: bytes, trial: Trial, *, streamed: bool, leaves: bool
) -> str:
    """One step; in a word, what became of it. A broken promise is noted."""
    data = b""
    status = 0
    try:
        reply = await client.send("POST", f"/p/{name}/v1/chat/completions", JSON, body, deadlines=PATIENCE)
        status = reply.status
        if status == 200:
            trial.first_bytes[step] = asyncio.get_running_loop().time()
        try:
            while not reply.done:
                data += await reply.read()
                if leaves and data:
                    return "left"
        finally:
            reply.close()
    except EngineError as error:
        return "cut" if status else f"no answer: {type(error).__name__}"
    if status != 200:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(data)["error"]["message"]:
                return f"error {status}"
        trial.broken.append(f"{step}: status {status} without a reason: {data[:80]!r}")
        return "unclear"
    if b'"error"' in data:
        return "error in the stream"
    runs = {
        word
        for word in data.decode().replace('"', " ").split()
        if word.split("-")[0].isdigit() and "-" in word
    }
    complete = data.endswith(b"data: [DONE]\n\n") if streamed else b'"finish_reason"' in data
    if not complete or len(runs) != 1:
        trial.broken.append(f"{step}: incomplete or mixed: {runs} {data[-60:]!r}")
        return "unclear"
    return "complete"


def twice(trial: Trial) -> list[str]:
    """Steps that an engine was asked for again after their client had a byte."""
    return [
        f"{step}: run again after its first byte"
        for step, at in trial.first_bytes.items()
        if any(began > at for began, _ in trial.runs.get(step, ()))
    ]


async def run(args: argparse.Namespace, folder: Path) -> int:
    """The whole trial."""
    rng = random.Random(args.seed)
    trial = Trial()
    rogues = [Rogue(trial, random.Random(rng.random())) for _ in range(3)]
    for rogue in rogues:
        await rogue.start()
    loop = asyncio.get_running_loop()
    settings = (*LIMITS, f"gateway.workers={args.workers}")
    async with gateway([f"http://127.0.0.1:{r.port}" for r in rogues], folder, *settings) as process:
        until = loop.time() + args.minutes * 60.0
        moods = [asyncio.create_task(rogue.misbehave(until)) for rogue in rogues]
        agents = [
            asyncio.create_task(agent(f"a{i}", process.port, trial, random.Random(rng.random()), until))
            for i in range(args.programs)
        ]
        files = 0
        while loop.time() < until:
            await asyncio.sleep(min(2.0, args.minutes * 6))
            files = max(files, process.files())
        await asyncio.wait(agents, timeout=3 * HANG_S)
        trial.broken += [f"agent {i} still runs" for i, task in enumerate(agents) if not task.done()]
        for task in agents:
            with contextlib.suppress(asyncio.CancelledError):
                if task.done() and task.exception() is not None:
                    trial.broken.append(f"an agent failed: {task.exception()!r}")
        rest = await counters_at_rest(process.port)
        memory = process.rss_mb()
        for task in moods:
            task.cancel()
    for rogue in rogues:
        await rogue.kill()
    trial.broken += twice(trial)
    trial.broken += [
        f"{key} is {rest[key]} at rest"
        for key in ("steps_waiting", "steps_running", "requests_open")
        if rest[key]
    ]
    if rest["scheduler"] != "ok":
        trial.broken.append("the scheduler failed")
    steps = sum(trial.seen.values())
    retried = sum(len(runs) > 1 for runs in trial.runs.values())
    figures = {
        "seed": args.seed,
        "minutes": args.minutes,
        "steps": steps,
        "outcomes": dict(trial.seen.most_common()),
        "sent_to_an_engine_twice": retried,
        "files_max": files,
        "rss_mb": round(memory, 1),
        "at_rest": rest,
        "broken_promises": len(trial.broken),
    }
    print(json.dumps(figures, indent=1))
    for line in trial.broken[:20]:
        print("BROKEN", line)
    return 1 if trial.broken else 0


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--programs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that keep the clients")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentserve-chaos-") as folder:
        status = asyncio.run(run(args, Path(folder)))
        log = Path(folder, "gateway.log")
        if status and log.exists():
            print(log.read_text()[-4000:], file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
