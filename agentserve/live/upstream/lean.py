"""A lean HTTP/1.1 client for engines on the private network: httptools, asyncio protocols, one pool an engine.

Rule: a connection is lent to one exchange at a time, the one that was used last before others, and never one that has
lain idle for so long that its engine may be closing it. Only so many are open: who comes then waits in turn. It must
not know inference.

A request is sent again only if its connection had been closed while it lay idle: one that was used before, that is
lost within `STALE_S` of the request's being written, and of whose reply no byte came. Then the engine has not begun
it, as far as anybody can tell, and it goes once to a fresh connection. Whatever is lost later may have been at work
on the request, or have died of it: that is told to the relay, which counts what it sends elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from urllib.parse import urlsplit

from agentserve.errors import BadRequest, EngineTimeout, EngineUnreachable
from agentserve.live.upstream.connection import Connection
from agentserve.live.upstream.seam import Deadlines, RawHeaders

LF, CR = b"\n\r"  # as numbers: looking for one byte, Python first tries whether it is one
# uvicorn, and with it most engines, closes idle connections after 5 s; one that is about to go is not used.
KEEPALIVE_S = 4.0
STALE_S = (
    1.0  # a connection that was closed already is reset in a round trip; an engine that is busy takes longer
)
SWEEP_S_MIN = 0.5  # between two looks for those that lie idle for too long
HEADS_MAX = 256  # first lines of requests that are remembered
DIALLING_MAX = 64  # connections being opened at once: more would only overflow the engine's backlog
_END = (b"", b"")  # of a head


class LeanUpstream:
    """The connections to one engine."""

    def __init__(
        self,
        url: str,
        *,
        connections_max: int = 1024,
        keepalive_s: float = KEEPALIVE_S,
        stale_s: float = STALE_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the lean transport speaks plain HTTP, not {url!r}")
        self.loop = asyncio.get_running_loop()
        self.url = url
        self._host = parts.hostname
        self._port = parts.port or 80
        self._prefix = parts.path.rstrip("/").encode("ascii")
        self._authority = parts.netloc.rpartition("@")[2].encode("ascii")
        self._heads: dict[tuple[str, str], bytes] = {}
        self._idle: deque[Connection] = deque()  # the most recently used last
        self._open: set[Connection] = set()
        self._opening = 0
        self._dialling = asyncio.Semaphore(DIALLING_MAX)
        self._connections_max = connections_max
        self._keepalive_s = keepalive_s
        self._stale_s = stale_s
        self._sweeping: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._stopped = False

    @property
    def connections(self) -> int:
        """How many are open, used or not."""
        return len(self._open)

    async def send(
        self, method: str, path: str, headers: RawHeaders, body: bytes, *, deadlines: Deadlines
    ) -> Connection:
        head = self._request_head(method, path, headers, body)
        overall_at = self.loop.time() + deadlines.overall_s
        stale = False  # has one been tried that an engine had closed?
        while True:
            # once is enough: the engine may be dying of this very request, and those that lie idle are many
            connection = None if stale and self._room else self._reusable()
            connection = connection or await self._connect(deadlines)
            reused = connection.used > 0 and not stale
            written_at = self.loop.time()
            connection.send(head, body, deadlines, overall_at)
            try:
                await connection.wait_head()
            except EngineUnreachable:
                connection.close()
                if reused and connection.silent and self.loop.time() - written_at < self._stale_s:
                    stale = True  # it had been closed while it lay idle; a fresh one tells the truth
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            return connection

    async def stop(self) -> None:
        self._stopped = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)

    # -- called by connections

    def keep(self, connection: Connection) -> None:
        """The exchange is over and the connection is good for another."""
        if self._stopped:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self._keepalive_s, self._sweep)
        self._next()

    def dropped(self, connection: Connection) -> None:
        """The connection was closed on purpose."""
        self._open.discard(connection)
        self._next()

    def gone(self, connection: Connection) -> None:
        """The connection was lost."""
        self._open.discard(connection)
        if connection.idle_since is not None:
            with contextlib.suppress(ValueError):
                self._idle.remove(connection)
        self._next()

    # -- the pool

    def _reusable(self) -> Connection | None:
        idle = self._idle
        if not idle:
            return None
        self._drop_stale()
        while idle:
            connection = idle.pop()
            connection.idle_since = None
            if not connection.lost:
                return connection
        return None

    def _drop_stale(self) -> None:
        """Close those that have lain idle for so long that the engine may be about to."""
        idle, oldest_use = self._idle, self.loop.time() - self._keepalive_s
        while idle and (idle[0].idle_since or 0.0) < oldest_use:
            stale = idle.popleft()
            stale.idle_since = None
            stale.abort()
            self._open.discard(stale)

    def _sweep(self) -> None:
        """When nothing asks for a connection any more, none stays open for it."""
        self._sweeping = None
        self._drop_stale()
        if self._idle:
            due_s = (self._idle[0].idle_since or 0.0) + self._keepalive_s - self.loop.time()
            self._sweeping = self.loop.call_later(max(due_s, SWEEP_S_MIN), self._sweep)

    @property
    def _room(self) -> bool:
        """May one more connection be opened?"""
        return len(self._open) + self._opening < self._connections_max

    async def _connect(self, deadlines: Deadlines) -> Connection:
        if not self._room:
            return await self._wait_for_place(deadlines)
        self._opening += 1
        try:
            async with self._dialling, asyncio.timeout(deadlines.connect_s):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self), self._host, self._port
                )
        except TimeoutError:
            # nothing was sent, so this is no answer that came too late
            raise EngineUnreachable(
                f"no connection to {self._host}:{self._port} within {deadlines.connect_s:g} s"
            ) from None
        except OSError as error:
            raise EngineUnreachable(f"no connection to {self._host}:{self._port}: {error}") from error
        finally:
            self._opening -= 1
        self._open.add(connection)
        return connection

    async def _wait_for_place(self, deadlines: Deadlines) -> Connection:
        """All connections are in use: the first that comes free is taken in turn."""
        turn: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(deadlines.first_byte_s):
                await turn
        except TimeoutError:
            raise EngineTimeout(f"all {self._connections_max} connections stayed in use") from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
        return self._reusable() or await self._connect(deadlines)

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _request_head(self, method: str, path: str, headers: RawHeaders, body: bytes) -> bytes:
        start = self._heads.get((method, path))
        if start is None:
            start = b"%b %b%b HTTP/1.1\r\nhost: %b\r\n" % (
                method.encode("ascii"),
                self._prefix,
                path.encode("ascii"),
                self._authority,
            )
            if start.count(b"\n") != 2 or start.count(b"\r") != 2:
                raise BadRequest("a path holds a line break", remedy="ask for a path of one line")
            if len(self._heads) < HEADS_MAX:
                self._heads[method, path] = start
        lines = list(map(b": ".join, headers))
        text = b"".join(lines)
        if LF in text or CR in text:
            raise BadRequest("a header holds a line break", remedy="send header values of one line")
        if body or method not in ("GET", "HEAD", "DELETE"):
            lines.append(b"content-length: %d" % len(body))
        lines += _END
        return start + b"\r\n".join(lines)
