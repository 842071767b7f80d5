"""One socket to an engine, and the exchanges on it, one after another.

Rule: it is good for another exchange only after a whole reply that allows it, and never after anything surprising.
Buffers are bounded: a reader that is slow stops the engine's socket, not the gateway's memory. Of its pool it knows
only whom to tell that it is free, or gone.

A deadline costs nothing while it is far away: each connection keeps one timer, which is armed for the earliest
deadline it has seen and only looks whether one has really passed.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Protocol, cast

import httptools

from agentserve.errors import EngineBroke, EngineTimeout, EngineUnreachable
from agentserve.live.upstream.seam import Deadlines

BUFFERED_BYTES_MAX = 256 * 1024  # of a reply that nobody reads; then the socket is left unread
HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 256  # of a reply; what comes after is dropped
BUFFERS_JOINED_BYTES_MAX = 64 * 1024  # up to here head and body are joined and written at once
FINAL_STATUS_MIN = 200
PROBE_S = (20, 5, 3)  # TCP keepalive: after so long, every so often, so many times


class Pool(Protocol):
    """Who lends connections."""

    loop: asyncio.AbstractEventLoop

    def keep(self, connection: Connection) -> None:
        """The exchange is over and the connection is good for another."""

    def dropped(self, connection: Connection) -> None:
        """The connection was closed on purpose."""

    def gone(self, connection: Connection) -> None:
        """The connection was lost."""


class Connection(asyncio.Protocol):
    """One socket to an engine, one exchange at a time. It is its own reply."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.idle_since: float | None = None  # it lies in the pool, unused since then
        self.used = 0
        self.lost = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._head = False  # is the head whole?
        self._whole = False  # is the reply whole?
        self._framed = False  # does the reply say where it ends?
        self._keep = False
        self._closed = True  # no exchange is under way
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._head_bytes = 0
        self._paused = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._deadline_word = ""

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only
        sock = transport.get_extra_info("socket")
        if sock is not None:  # an engine whose machine is gone says nothing: ask now and then
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                for option, value in zip(
                    (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), PROBE_S, strict=True
                ):
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._pool.gone(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        del self._parser  # it holds us, and what holds itself waits for the collector
        if self._closed or self._whole:
            return
        if self._head and not self._framed and exc is None:
            self._whole = True  # a reply without a length ends with its connection
        elif self._error is None:
            where = "in its reply" if self._head else "before it replied"
            self._error = EngineUnreachable(f"the engine closed the connection {where}")
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self._closed:
            # nothing was asked: an engine that talks out of turn cannot be trusted with the next request
            self._abort()
            return
        if not self._head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._whole:  # what followed a whole reply is none of this exchange's business
                self._keep = False
            else:
                self._fail(EngineBroke(f"the engine's reply is not HTTP: {error}"))
                return
        if self._head_bytes > HEAD_BYTES_MAX and not self._head:
            self._fail(EngineBroke(f"the head of the engine's reply is over {HEAD_BYTES_MAX} bytes"))
            return
        self._wake()

    def eof_received(self) -> bool:
        return False

    # -- httptools

    def on_message_begin(self) -> None:
        if self._whole:  # a second reply, unasked
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head:  # else a trailer, or of a second reply, unasked
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._whole:
            return
        status = self._parser.get_status_code()
        if status < FINAL_STATUS_MIN:
            self.headers = []  # 100 Continue and the like
            return
        self.status = status
        del self.headers[HEADERS_MAX:]
        self._head = True
        self._framed = status in (204, 304) or _framed(self.headers)

    def on_body(self, data: bytes) -> None:
        if self._whole:
            return
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > BUFFERED_BYTES_MAX and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._head and not self._whole:
            self._whole = True
            self._keep = self._framed and self._parser.should_keep_alive()

    # -- one exchange

    def send(self, head: bytes, body: bytes, deadlines: Deadlines, overall_at: float) -> None:
        """Write the request. The reply's parts are awaited by `head` and `read`."""
        assert self._transport is not None
        self._begin()
        self._closed = False
        self._deadlines = deadlines
        self._overall_at = overall_at
        self.used += 1
        if len(body) <= BUFFERS_JOINED_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def wait_head(self) -> None:
        """Until the head is here."""
        self._expect(self._deadlines.first_byte_s, "for the first byte")
        while not self._head:
            await self._wait()

    @property
    def silent(self) -> bool:
        """Has no byte of a reply come, not even of its head?"""
        return self._head_bytes == 0

    @property
    def done(self) -> bool:
        return self._whole and not self._chunks

    async def read(self) -> bytes:
        if not self._chunks and not self._whole:
            self._expect(self._deadlines.idle_s, "between two bytes")
            while not self._chunks and not self._whole:
                await self._wait()
        if not self._chunks:
            return b""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return data

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._deadline = None
        self._error = None  # whoever waited has it, and its frames hold us
        if self._whole and self._keep and not self.lost:
            if self._paused and self._transport is not None:
                self._transport.resume_reading()
            self._chunks.clear()
            self._pool.keep(self)
        else:
            self._abort()
            self._pool.dropped(self)

    def _abort(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def abort(self) -> None:
        """Close the socket at once, whatever happens on it."""
        self._closed = True
        self._abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._abort()
        self._wake()

    # -- deadlines

    def _expect(self, seconds: float, word: str) -> None:
        at = self._loop.time() + seconds
        self._deadline_word = word
        if at > self._overall_at:
            at, self._deadline_word = self._overall_at, "for the whole reply"
        self._deadline = at
        if self._timer is None or self._timer_at > at:
            if self._timer is not None:
                self._timer.cancel()
            self._arm(at)

    def _arm(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None or self._waiter is None:
            return
        if self._loop.time() >= self._deadline - 1e-3:
            self._fail(EngineTimeout(f"the engine took too long: waited {self._deadline_word}"))
        else:
            self._arm(self._deadline)


def _framed(headers: list[tuple[bytes, bytes]]) -> bool:
    """Does a head say where its body ends?"""
    for name, value in headers:
        if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
            return True
    return False
