"""What one call costs the gateway's own thread, without sockets: for comparing two versions on a noisy machine.

    python -m tests.bench.relay.percall [--calls 2000] [--rounds 7] [--case NAME] [--bytes N]
                                            [--stages] [--profile N] [--json]

Everything stands as `agentserve up` wires it (identity, scheduler, journal on SQLite, metrics, traces at 1%), the
server's and the engine client's protocols included; only the transports under them are made of memory. Figures are
µs of CPU of the loop's thread for each call, and of the whole process; the least of the rounds counts, since whatever
else runs on the machine can only add to it. `bare` and `reading` are the floors: the same protocols with nothing of
ours between them, and with what a recogniser of programs reads that remembers no bodies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import gc
import itertools
import json
import pstats
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from agentserve.cli.gateway import composed
from agentserve.config import EngineSettings, Settings, StoreSettings, TelemetrySettings
from agentserve.core.ids import EngineId
from agentserve.live.app import Gateway
from agentserve.live.interpreter import settle_interpreter
from agentserve.live.server import HttpConnection, limited
from agentserve.live.upstream.connection import Connection
from agentserve.live.upstream.lean import LeanUpstream
from agentserve.store.journal import WriteBehind
from tests.bench.relay.bare import Bare

CONNECTIONS = 32
EVENTS = 200
TURNS, ADDED_CHARS = 32, 1_000  # of a history that grows, and of a tool's result in it
ENDS = b"]}"  # a body whose messages come last
TEXT = ("words of six " * 60)[:700]
USAGE = {"prompt_tokens": 260, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 240}}


def json_reply() -> bytes:
    """A chat completion, as an engine answers it."""
    message = {"role": "assistant", "content": TEXT}
    body = json.dumps(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": USAGE,
        }
    ).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def stream_reply() -> list[bytes]:
    """A stream, in the pieces in which a burst reaches the gateway."""

    def event(delta: dict[str, str], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        head = {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
        }
        data = b"data: %b\n\n" % json.dumps({**head, "choices": [choice]}, separators=(",", ":")).encode()
        return b"%x\r\n%b\r\n" % (len(data), data)

    parts = [event({"content": "token "}, None) for _ in range(EVENTS)]
    done = b"data: [DONE]\n\n"
    last = event({}, "stop") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = [b"".join(parts[i : i + 8]) for i in range(0, EVENTS, 8)]
    return [head + pieces[0], *pieces[1:], last]


class EngineEnd(asyncio.Transport):
    """The engine's side of a connection: every request is answered by the next turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.connection: Connection | None = None
        self.whole = [json_reply()]
        self.stream = stream_reply()

    def write(self, data: Any) -> None:
        pieces = self.stream if b'"stream":true' in data else self.whole
        for piece in pieces:
            self._loop.call_soon(self._answer, piece)

    def _answer(self, piece: bytes) -> None:
        assert self.connection is not None
        self.connection.data_received(piece)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        return None

    def pause_reading(self) -> None:
        return None

    def abort(self) -> None:
        return None


class MemoryLoop:
    """The loop, dialling memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time, self.create_future = loop.time, loop.create_future
        self.call_at, self.call_later = loop.call_at, loop.call_later

    async def create_connection(
        self, protocol: Callable[[], Connection], _host: str, _port: int
    ) -> tuple[EngineEnd, Connection]:
        end, connection = EngineEnd(self._loop), protocol()
        end.connection = connection
        connection.connection_made(end)
        return end, connection


def memory_upstream() -> LeanUpstream:
    """The lean client, to an engine made of memory."""
    upstream = LeanUpstream("http://127.0.0.1:9")
    upstream.loop = cast(asyncio.AbstractEventLoop, MemoryLoop(upstream.loop))
    return upstream


class ClientEnd(asyncio.Transport):
    """The client's side: sends the next request when the answer is whole, until all calls were made."""

    def __init__(self, requests: list[tuple[bytes | memoryview, ...]], load: Load, *, streams: bool) -> None:
        """`requests`: each in pieces; after the last comes the first again."""
        super().__init__()
        self._load = load
        self._requests = itertools.cycle(requests)
        self._streams = streams
        self.protocol: HttpConnection | None = None

    def write(self, data: Any) -> None:
        if not data.startswith(b"HTTP/1.1 200") and data.startswith(b"HTTP/1.1"):
            raise RuntimeError(data[:300])
        if data.endswith(b"0\r\n\r\n") if self._streams else data.endswith(b"}"):
            self._load.answered(self)

    def ask(self) -> None:
        """One request."""
        assert self.protocol is not None
        for piece in next(self._requests):
            came = 0
            while came < len(piece):
                room = self.protocol.get_buffer(-1)
                count = min(len(room), len(piece) - came)
                room[:count] = piece[came : came + count]
                del room
                self.protocol.buffer_updated(count)
                came += count

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        return None

    def abort(self) -> None:
        return None


class Stages:
    """Where the time goes: the loop's thread is looked at some thousand times a second, and its innermost frame counts.

    A frame belongs to the stage whose path its file's begins with, the longest one; what runs in C is its caller's.
    """

    EVERY_S = 0.0004
    PATHS = (
        "live/server.py live/framing.py live/request.py", "live/upstream",
        "live/app.py live/relay.py live/reading.py live/exchange.py",
        "live/passage.py live/taps.py live/headers.py live/splice.py adapters", "live/wire", "core/identity",
        "live/driver.py", "core/scheduler.py core/board.py core/fleet.py core/program.py", "core/policies core/pins.py",
        "core/learned.py core/remembered.py core/foresight.py core/forecast", "core/workflow live/workflows.py",
        "live/outcome.py live/quotas.py live/auth.py live/engines.py live/monitor.py core/prefixes.py",
        "live/feed.py live/holdings.py live/foretold.py core/direct.py", "telemetry core/story.py core/facts.py",
        "store", "",
    )  # fmt: skip

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._of_file: dict[str, str] = {}

    def __enter__(self) -> Stages:
        self._before = signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, self.EVERY_S, self.EVERY_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _look(self, _signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            stage = self._stage(frame.f_code.co_filename)
            if stage is not None:
                self.seen[stage] += 1
                return
            frame = frame.f_back

    def _stage(self, file: str) -> str | None:
        known = self._of_file.get(file)
        if known is None:
            inner = file.rpartition("/agentserve/")[2] if "/agentserve/" in file else ""
            ours = bool(inner) or file == __file__
            found = [p for s in self.PATHS for p in s.split(" ") if inner.startswith(p)] if ours else []
            longest = max(found, key=len, default="")
            stages = [s for s in self.PATHS if longest in s.split(" ")] if found else ["?"]
            known = self._of_file[file] = stages[0] or "the bench itself, and the rest"
        return None if known == "?" else known

    def table(self, us: float) -> str:
        """Stages, the dearest first, by their share of a call."""
        total = self.seen.total() or 1
        return "\n".join(f"{us * n / total:8.1f} us  {stage}" for stage, n in self.seen.most_common())


class Load:
    """A closed loop of clients."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left = 0
        self._open = 0
        self._over: asyncio.Future[None] = loop.create_future()

    async def run(self, ends: list[ClientEnd], calls: int) -> None:
        """So many calls, from all ends at once."""
        self._over = self._loop.create_future()
        self._left = calls
        for end in ends:
            self._next(end)
        await self._over

    def answered(self, end: ClientEnd) -> None:
        """An answer is whole."""
        self._open -= 1
        if self._left:
            self._next(end)
        elif not self._open and not self._over.done():
            self._over.set_result(None)

    def _next(self, end: ClientEnd) -> None:
        self._left -= 1
        self._open += 1
        # a client's next request comes some turns of the loop after its answer
        soon = self._loop.call_soon
        soon(soon, soon, end.ask)


def requests_of(case: str, index: int, size: int) -> list[tuple[bytes | memoryview, ...]]:
    """What one client sends, call by call: the bench's request each time, or a history to which each call adds."""
    head, _, body = request_of(case, index, size).partition(b"\r\n\r\n")
    if case != "growing":
        return [(head + b"\r\n\r\n" + body,)]
    said = [{"role": "assistant", "content": TEXT}, {"role": "user", "content": "x" * ADDED_CHARS}]
    added = b"," + json.dumps(said, separators=(",", ":")).encode()[1:-1]
    history = memoryview(body[: -len(ENDS)] + added * TURNS)
    ends = [len(body) - len(ENDS) + len(added) * turn for turn in range(TURNS)]
    start = head.rpartition(b" ")[0]  # the length is the last header
    return [(b"%b %d\r\n\r\n" % (start, end + len(ENDS)), history[:end], ENDS) for end in ends]


def request_of(case: str, index: int, size: int = 1000) -> bytes:
    """What the bench's load sends."""
    text = "".join(" " if i % 7 == 6 else chr(97 + (i * 31 + index) % 26) for i in range(size))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
    body = json.dumps(
        {"model": "m", "max_tokens": 200, "stream": case == "stream", "messages": messages},
        separators=(",", ":"),
    ).encode()
    program = "" if case == "content" else f"/p/bench-{index}"
    return (
        f"POST {program}/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8400\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer bench\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


FLOORS = ("bare", "reading")  # the same calls as "named", through `bare`
CASES = ("named", "growing", "content", "stream", *FLOORS)


@contextlib.asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[Gateway]:
    """As `agentserve up` has it, in front of an engine made of memory."""
    settings = Settings(
        engines=(EngineSettings(id="e1", url="http://127.0.0.1:9", kind="openai_http"),),
        store=StoreSettings(url=f"sqlite+aiosqlite:///{folder}/bench.db"),
        telemetry=TelemetrySettings(
            traces="otlp", otlp_endpoint="http://127.0.0.1:9/v1/traces", trace_sample=0.01
        ),
    )
    async with composed(settings) as made:
        gateway = made.gateway
        for engine in settings.engines:
            await gateway.engines.add(engine)
        await gateway.monitor.stop()
        served = gateway.engines["e1"]
        served.upstream = memory_upstream()
        gateway.monitor._answered(served)
        assert gateway.driver.scheduler.board.fleet.get(EngineId("e1")) is not None
        yield gateway


async def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All cases, in rounds that take turns."""
    loop = asyncio.get_running_loop()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="agentserve-percall-") as name:
        async with gateway(Path(name)) as served:
            speaks = limited(header_bytes_max=65536, body_bytes_max=1 << 25, bodies_bytes_max=1 << 30)
            state = ServerState()
            load = Load(loop)
            ends: dict[str, list[ClientEnd]] = {}
            for case in args.case or CASES:
                ends[case] = []
                upstream = memory_upstream()
                app = Bare(upstream, reads=case == "reading") if case in FLOORS else served
                config = Config(app, log_config=None, proxy_headers=False)
                config.load()
                for index in range(CONNECTIONS):
                    requests = requests_of(case, index, args.bytes)
                    end = ClientEnd(requests, load, streams=case == "stream")
                    end.protocol = speaks(config, state, {}, loop)
                    end.protocol.connection_made(end)
                    ends[case].append(end)
                await load.run(ends[case], 500)
            journal = served.relay._ledger._journal
            assert isinstance(journal, WriteBehind)
            settle_interpreter()
            for _ in range(args.rounds):
                for case, clients in ends.items():
                    calls = max(args.calls // 10 if case == "stream" else args.calls, CONNECTIONS)
                    thread_s, process_s = time.thread_time(), time.process_time()
                    await load.run(clients, calls)
                    us = (time.thread_time() - thread_s) / calls * 1e6
                    await journal.flushed()
                    all_us = (time.process_time() - process_s) / calls * 1e6
                    best = found.setdefault(case, {"us": us, "process_us": all_us})
                    best["us"], best["process_us"] = min(best["us"], us), min(best["process_us"], all_us)
            for case, clients in ends.items() if args.stages else ():
                with Stages() as stages:
                    await load.run(clients, args.calls * args.rounds)
                print(case, stages.table(found[case]["us"]), sep="\n")
            if args.profile:
                gc.collect()
                for case, clients in ends.items():
                    profile = cProfile.Profile(builtins=args.builtins)
                    profile.enable()
                    await load.run(clients, args.calls)
                    profile.disable()
                    print(case)
                    pstats.Stats(profile).strip_dirs().sort_stats(args.sort).print_stats(args.profile)
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="percall")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--bytes", type=int, default=1000, help="of a request's text")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--profile", type=int, default=0, help="also print so many functions of a profile")
    parser.add_argument(
        "--stages", action="store_true", help="also say which part of us takes how much of it"
    )
    parser.add_argument("--sort", default="tottime")
    parser.add_argument("--builtins", action="store_true", help="profile C functions too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    found = uvloop.run(measure(args))
    if args.json:
        print(json.dumps(found))
    else:
        for case, figures in found.items():
            print(
                f"{case:10} {figures['us']:8.1f} us   {figures['process_us']:8.1f} us with the journal's thread"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
