"""The ZeroMQ side of KV events: subscribe, refill gaps from the replay socket, notice restarts.

Rule: a reader never misses silently. Messages reach the consumer in sequence; a gap is refilled by replay
or turned into a "cleared"; a publisher that begins anew yields a "cleared" first. Queues are bounded: a
consumer that falls behind loses its place and gets a "cleared", never stale news.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from agentserve.ports import KvChange
from agentserve_adapters.kv_events import END_OF_REPLAY, Batch, MalformedEvents, Sequence, Verdict, decode

log = logging.getLogger("agentserve.engines")

RECEIVE_QUEUE_MAX = 100_000  # messages ZeroMQ holds for us
CHANGES_MAX = 100_000  # changes that wait for the consumer
REPLAY_TIMEOUT_S = 5.0
RECONNECT_MS = 200
RECONNECT_MS_MAX = 5_000
CLEARED = KvChange(kind="cleared")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """Where one rank of an engine publishes."""

    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""


def reachable(endpoint: str, engine_url: str) -> str:
    """A publisher's own endpoint as others reach it: wildcards become the engine's host."""
    host = urlsplit(engine_url).hostname or "127.0.0.1"
    for wild in ("//*:", "//0.0.0.0:", "//[::]:", "//::"):
        if wild in endpoint:
            port = endpoint.rpartition(":")[2]
            return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
    return endpoint


class KvStream:
    """All ranks of one engine, as one stream of changes."""

    def __init__(self, sources: tuple[KvSource, ...], *, engine: str) -> None:
        self._engine = engine
        self._queue: asyncio.Queue[KvChange] = asyncio.Queue(CHANGES_MAX)
        self._readers = [_Reader(source, engine, self._put) for source in sources]
        self._runs: list[asyncio.Task[None]] = []  # one a reader, and one a start over
        self._overrun = False

    @property
    def restarts(self) -> int:
        """How often a publisher was seen to begin anew."""
        return sum(reader.restarts for reader in self._readers)

    async def changes(self, *, until_s: float | None = None) -> AsyncGenerator[KvChange]:
        """Changes as they happen; ends when closed, or after `until_s` seconds without one."""
        self._runs = [asyncio.create_task(reader.run()) for reader in self._readers]
        try:
            while True:
                try:
                    change = await asyncio.wait_for(self._queue.get(), until_s)
                except TimeoutError:
                    return
                yield change
                if self._overrun and self._queue.empty():
                    self._overrun = False
                    for reader in self._readers:
                        reader.sequence.begin_anew()
                    yield CLEARED
        finally:
            await self.close()

    async def close(self) -> None:
        runs, self._runs = self._runs, []
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    def start_over(self) -> None:
        """A restart was seen elsewhere, for instance in the gauges: forget, and read the new run from its start."""
        self._put(CLEARED)
        for reader in self._readers:
            reader.sequence.begin_anew()
            self._runs.append(asyncio.create_task(reader.refill()))

    def _put(self, change: KvChange) -> None:
        if self._overrun:
            return
        try:
            self._queue.put_nowait(change)
        except asyncio.QueueFull:
            self._overrun = True
            log.warning("KV events of engine %s come faster than they are read: starting over", self._engine)


class _Reader:
    """One rank's publisher."""

    def __init__(self, source: KvSource, engine: str, put: Callable[[KvChange], None]) -> None:
        self.sequence = Sequence()
        self.restarts = 0
        self._source = source
        self._engine = engine
        self._put = put
        self._one_at_a_time = asyncio.Lock()  # a reconnection and a message may both ask for a replay

    async def run(self) -> None:
        context = zmq.asyncio.Context.instance()
        socket = context.socket(zmq.SUB)
        monitor = None
        watcher = None
        try:
            socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MAX)
            socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.IPV6, 1)
            socket.subscribe(self._source.topic.encode())
            monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            watcher = asyncio.create_task(self._watch(monitor))
            socket.connect(self._source.endpoint)
            while True:
                frames = await socket.recv_multipart()
                async with self._one_at_a_time:
                    await self._take(frames)
        finally:
            if watcher is not None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
            if monitor is not None:
                socket.disable_monitor()
                monitor.close(linger=0)
            socket.close(linger=0)

    async def refill(self) -> None:
        """Ask for everything that the publisher still has and we do not know."""
        async with self._one_at_a_time:
            await self._refill()

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """A connection that breaks puts the sequence in doubt; one that comes (back) asks for what was missed."""
        while True:
            event = await recv_monitor_message(monitor)
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self.sequence.doubt()
            elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                await self.refill()

    async def _take(self, frames: list[bytes]) -> None:
        read = self._parse(frames)
        if read is None:
            return
        number, batch = read
        verdict = self.sequence.judge(number, batch.at)
        if verdict is Verdict.SEEN:
            return
        if verdict is Verdict.RESTART:
            self._begin_anew()
            verdict = self.sequence.judge(number, batch.at)
        if verdict is Verdict.GAP:
            await self._refill()
            verdict = self.sequence.judge(number, batch.at)
            if verdict is Verdict.SEEN:
                return  # the replay brought it
            if verdict is not Verdict.NEXT:
                self._put(CLEARED)  # what lies between is lost
        self._apply(number, batch)

    async def _refill(self) -> None:
        """Ask the publisher for everything since the last message that we know."""
        if self._source.replay_endpoint is None:
            if self.sequence.expected > 0:
                self._begin_anew()
            return
        start = max(self.sequence.expected - 1, 0)
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                messages = await self._replay(start)
                known = self.sequence.expected > 0
                if known and not any(self.sequence.continues(n, b.at) for n, b in messages[:1]):
                    # Not the run that we knew, or its buffer no longer reaches back to where we were.
                    self._begin_anew()
                    if start > 0:
                        messages = await self._replay(0)
        except (TimeoutError, zmq.ZMQError):
            log.warning("engine %s does not replay its KV events: starting over", self._engine)
            self._begin_anew()
            return
        self.sequence.trust()
        for number, batch in messages:
            if number >= self.sequence.expected:
                self._apply(number, batch)

    async def _replay(self, start: int) -> list[tuple[int, Batch]]:
        context = zmq.asyncio.Context.instance()
        socket = context.socket(zmq.DEALER)
        messages: list[tuple[int, Batch]] = []
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.IPV6, 1)
            socket.connect(self._source.replay_endpoint or "")
            await socket.send_multipart([b"", start.to_bytes(8, "big")])
            while True:
                frames = await socket.recv_multipart()
                if len(frames) >= 2 and int.from_bytes(frames[-2], "big") == END_OF_REPLAY:
                    return messages
                read = self._parse(frames[-3:])
                if read is not None:
                    messages.append(read)
        finally:
            socket.close(linger=0)

    def _parse(self, frames: list[bytes]) -> tuple[int, Batch] | None:
        if len(frames) < 2:
            return None
        with contextlib.suppress(MalformedEvents):
            return int.from_bytes(frames[-2], "big"), decode(frames[-1])
        log.warning("engine %s sent a KV event that cannot be read: skipped", self._engine)
        return None

    def _apply(self, number: int, batch: Batch) -> None:
        for change in batch.changes:
            self._put(change)
        self.sequence.accept(number, batch.at)

    def _begin_anew(self) -> None:
        if self.sequence.expected > 0:
            self.restarts += 1
            self._put(CLEARED)
        self.sequence.begin_anew()
