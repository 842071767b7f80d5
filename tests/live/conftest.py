"""A gateway on a real socket in front of engines that do exactly what a test tells them to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx
import pytest
from msgspec.structs import asdict

from agentserve.config import EngineSettings, LimitSettings, Settings
from agentserve.core import events as ev
from agentserve.core.board import Board, Limits
from agentserve.core.foresight import Naive
from agentserve.core.identity import Resolver
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler
from agentserve.live.app import Gateway
from agentserve.live.auth import Keys, OpenKeys
from agentserve.live.driver import Driver
from agentserve.live.engines import Engines
from agentserve.live.monitor import ProbeSettings
from agentserve.live.serve import GatewayServer, server_for, started
from agentserve.live.server import Patience
from agentserve.ports import (
    Capabilities,
    EngineLoad,
    EngineOptions,
    Hints,
    KvChange,
    Outcome,
    Outgoing,
    Receipt,
    StepRecord,
)

ALL_PROTOCOLS = frozenset({"chat", "completions", "responses", "messages", "embeddings"})


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request as the engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait for something that says nothing when it happens."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


Behaviour = Callable[[Asked, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScriptedEngine:
    """An HTTP server made of bytes: what it answers is given, request by request."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.script: deque[Behaviour] = deque()
        self.otherwise: Behaviour = answers(200, chat_reply("hello"))
        self.left: list[float] = []  # when a client closed its connection in the middle of a reply
        self.open = 0
        self._server: asyncio.Server | None = None
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                asked = Asked(method=method, path=path, headers=headers, body=body)
                self.asked.append(asked)
                behaviour = self.script.popleft() if self.script else self.otherwise
                await behaviour(asked, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            self.left.append(asyncio.get_running_loop().time())
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()


def chat_reply(text: str, **more: Any) -> dict[str, Any]:
    """A whole chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 5,
            "total_tokens": 25,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
    }


def answers(status: int, body: Any, headers: str = "") -> Behaviour:
    """A whole reply with its length."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def behave(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}"
            f"content-length: {len(payload)}\r\n\r\n".encode()
            + payload
        )

    return behave


def streams(
    *pieces: bytes, pause_s: float = 0.0, end: bool = True, kind: str = "text/event-stream"
) -> Behaviour:
    """A chunked reply, each piece in a write of its own; without `end` the connection is closed in mid-reply."""

    async def behave(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(pause_s)
        if not end:
            writer.transport.abort()
            raise ConnectionResetError
        writer.write(b"0\r\n\r\n")

    return behave


def raw(*pieces: bytes, close: bool = False, hang: bool = False) -> Behaviour:
    """Bytes as they are; then the connection is closed, or nothing more is ever said."""

    async def behave(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if hang:
            await reader.read(1)  # until the other side gives up
            raise ConnectionResetError
        if close:
            raise ConnectionResetError

    return behave


def sse(*events: Any, done: bool = True) -> bytes:
    """Events as an OpenAI server writes them."""
    text = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return text + (b"data: [DONE]\n\n" if done else b"")


def delta(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a streamed chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}],
    }


USAGE_CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [],
    "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
}


class PlainAdapter:
    """An adapter that changes nothing; its engine is healthy as long as it accepts connections."""

    kind = "plain"
    protocols = ALL_PROTOCOLS

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.url = options.url
        self.app = options.extra.get("app")
        self.boot = "1"
        self.prepared: list[Hints] = []
        self.before_load: Callable[[], Awaitable[None]] | None = None
        self.protocols = frozenset(options.extra.get("protocols", ALL_PROTOCOLS))

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def probe(self) -> Capabilities:
        kv_tokens = self.options.extra.get("kv_tokens")
        return Capabilities(
            kind="plain",
            models=self.options.models,
            protocols=self.protocols,
            kv_tokens=kv_tokens if isinstance(kv_tokens, int) else None,
        )

    async def load(self) -> EngineLoad:
        if self.before_load is not None:
            await self.before_load()
        if self.app is None:
            port = int(self.url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
        return EngineLoad(running=0, waiting=0, boot=self.boot)

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        self.prepared.append(hints)
        extra = self.options.extra.get("adds")
        if isinstance(extra, dict):
            outgoing.body.update(extra)
            outgoing.changed = True

    async def count_tokens(self, protocol: str, body: Any) -> int | None:
        counts = self.options.extra.get("counts")
        return counts if isinstance(counts, int) else None

    async def pin(self, *args: Any) -> Receipt:
        return Receipt(outcome=Outcome.REFUSED)

    async def unpin(self, *args: Any) -> Receipt:
        return Receipt(outcome=Outcome.REFUSED)

    async def warm(self, *args: Any) -> Receipt:
        return Receipt(outcome=Outcome.REFUSED)

    async def abort(self, request_id: str) -> Receipt:
        return Receipt(outcome=Outcome.REFUSED)

    async def kv_events(self) -> AsyncIterator[KvChange]:
        return
        yield  # which makes it an iterator, of nothing


Told = TypeVar("Told", bound=ev.Event)


@dataclass(slots=True)
class Books:
    """A journal and a telemetry that remember what they were told."""

    events: list[ev.AnyEvent] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    facts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)

    def event(self, event: ev.AnyEvent, now: float, decisions: list[Any]) -> None:
        self.events.append(event)

    def step(self, record: StepRecord) -> None:
        self.steps.append(asdict(record))

    def fact(self, kind: str, row: Any) -> None:
        self.facts.append((kind, dict(row)))

    def count(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def observe(self, name: str, value: float, /, **labels: Any) -> None: ...
    def gauge(self, name: str, value: float, /, **labels: str) -> None: ...
    def step_done(self, record: Any) -> None: ...

    def told(self, kind: type[Told]) -> list[Told]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass(slots=True, kw_only=True)
class Running:
    """A gateway that serves."""

    gateway: Gateway
    books: Books
    port: int
    client: httpx.AsyncClient
    server: GatewayServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def adapter(self) -> PlainAdapter:
        """Of its first engine."""
        adapter = self.gateway.engines["e1"].adapter
        assert isinstance(adapter, PlainAdapter)
        return adapter

    async def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def quiet(self) -> None:
        """Until nothing is under way any more."""
        await until(lambda: not self.gateway.relay.open and not self.gateway.driver.scheduler.board.steps)


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    one = ScriptedEngine()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def other() -> AsyncIterator[ScriptedEngine]:
    one = ScriptedEngine()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def workers() -> int:
    """How many processes keep the clients' connections; a module that is to hold for several overrides it."""
    return int(os.environ.get("AGENTSERVE_TEST_WORKERS", "1"))


@pytest.fixture
async def serve(workers: int) -> AsyncIterator[Serve]:
    """Start gateways: `await serve(engine, …, keys=…, limits=…)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *engines: ScriptedEngine,
            keys: Keys | None = None,
            limits: LimitSettings | None = None,
            policy: str = "agentserve",
            settings: Settings | None = None,
            extra: dict[str, Any] | None = None,
            probes: ProbeSettings | None = None,
            core: Limits | None = None,
            patience: Patience | None = None,
            workers: int = workers,
            clock: Callable[[], float] = time.time,
        ) -> Running:
            settings = settings or Settings(
                limits=limits or LimitSettings(),
                engines=tuple(
                    EngineSettings(id=f"e{i + 1}", url=e.url, extra=extra or {})
                    for i, e in enumerate(engines)
                ),
            )
            settings = replace(settings, gateway=replace(settings.gateway, workers=workers))
            board = Board(foresight=Naive(), limits=core or Limits())
            books = Books()
            driver = Driver(
                Scheduler(board, make_policy(policy, board)), journal=books, telemetry=books, check=True
            )
            gateway = Gateway(
                settings=settings,
                driver=driver,
                resolver=Resolver(),
                engines=Engines(PlainAdapter, settings.limits),
                journal=books,
                telemetry=books,
                keys=keys or OpenKeys(),
                probes=probes or ProbeSettings(interval_s=0.2, timeout_s=1.0),
                clock=clock,
            )
            server = server_for(gateway, port=0, patience=patience)
            task = await started(server)

            async def finish() -> None:
                server.should_exit = True
                await asyncio.wait([task], timeout=8.0)
                task.result()

            stack.push_async_callback(finish)
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port()}", timeout=10.0)
            stack.push_async_callback(client.aclose)
            return Running(gateway=gateway, books=books, port=server.port(), client=client, server=server)

        yield start
