"""The listening side: HTTP/1.1 for one connection, handed to uvicorn as its protocol class.

Rule: what is not plain, well-framed HTTP/1.1 (`framing`) is refused and the connection closed. A request reaches the
application when it is whole, so that no handler waits for a slow client. uvicorn keeps the sockets, the signals and the
lifespan; here is only what costs time on every request.

To the application this is ordinary ASGI, plus one extension: a function to be told at once that the client left.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.server import ServerState

from agentserve.live import framing, shapes
from agentserve.live.arriving import CAME_BYTES_MIN, STRAIGHT_BYTES_MIN, Arriving, Inflow
from agentserve.live.asgi import StreamCut
from agentserve.live.files import clients_max
from agentserve.live.framing import Refused
from agentserve.live.request import STATUS_LINES, Request

log = logging.getLogger("agentserve.http")

PIPELINE_MAX = 16  # requests that may wait behind the one being answered
FRAMING_SHARE_MAX = 8  # bytes on the wire for one of a chunked body: chunks of one byte take six
READ_BYTES = 64 * 1024  # at once, but of a long body's rest as many as come
WRITE_HIGH_BYTES = 256 * 1024
LINGER_S = 0.5
TICK_S = 1.0
TICK_S_MAX = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client may take."""

    request_s: float = 30.0  # from the first byte of a request to its last
    idle_s: float = 75.0  # between two requests
    stall_s: float = 60.0  # without taking anything of its answer


class HttpConnection(asyncio.BufferedProtocol):
    """One client's connection."""

    # set by `limited`
    scratch = memoryview(
        bytearray(READ_BYTES)
    )  # of all connections of a loop: it is read as soon as it is filled
    header_bytes_max = 64 * 1024
    body_bytes_max = 32 * 1024 * 1024
    arriving = Arriving(1024 * 1024 * 1024)
    connections_max = sys.maxsize
    was_full = False  # said once
    patience = Patience()
    # told what was not taken, by its status
    refused: Callable[[int], None] = staticmethod(lambda status: None)

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.app = config.loaded_app
        self.loop = _loop or asyncio.get_running_loop()
        self.state = server_state
        self.app_state = app_state
        self.transport: asyncio.Transport | None = None
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self.paused: asyncio.Future[None] | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._current: Request | None = None
        self._task: asyncio.Task[None] | None = None  # that answers it
        self._queue: deque[Request] = deque()
        self._closing = False
        self._reading = True
        self._since = 0.0  # when this request, or the idleness, began
        self._timer: asyncio.TimerHandle | None = None
        self._paused_at = 0.0
        self._fresh()

    def _fresh(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_done = False
        self._in_message = False
        self._lasts = False  # may the connection outlast this request?
        self._head_bytes = 0
        self._after_bytes = 0  # all that came after the head: the body, and how it is framed
        self._declared = 0  # length of the body
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._inflow: Inflow | None = None  # of a long body: the parser does not see its rest
        self._claimed = 0  # of `arriving`

    def _let_go(self) -> None:
        """The body is whole, or never will be."""
        self.arriving.bytes -= self._claimed
        self._claimed = 0
        self._body = []
        self._body_bytes = 0
        self._inflow = None

    def _claim(self, count: int) -> None:
        """So many more bytes are held for the body."""
        self._claimed += count
        arriving = self.arriving
        arriving.bytes += count
        if arriving.bytes > arriving.bytes_max:
            raise Refused(503, "too many bodies arrive at once; send it again in a while")

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.state.connections.add(self)  # type: ignore[arg-type]
        if len(self.state.connections) > self.connections_max:
            self._turn_away(self.transport)
            return
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.client = (str(peer[0]), int(peer[1])) if isinstance(peer, (tuple, list)) else None
        self.server = (str(here[0]), int(here[1])) if isinstance(here, (tuple, list)) else None
        self._since = self.loop.time()
        self._timer = self.loop.call_later(min(self.patience.request_s, TICK_S_MAX), self._tick)

    def _turn_away(self, transport: asyncio.Transport) -> None:
        """It has not asked yet, so nothing can be answered."""
        limits = type(self)
        if not limits.was_full:
            limits.was_full = True
            most = self.connections_max
            log.error(
                "clients have all %d connections that they may; more are reset: raise LimitNOFILE", most
            )
        self.refused(503)
        transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.connections.discard(self)
        self._closing = True
        self._let_go()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        del self._parser  # it holds us, and what holds itself waits for the collector
        self.resume_writing()
        if self._current is not None:
            self._current.client_left()
        self._queue.clear()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.scratch if self._inflow is None else self._inflow.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        try:
            if self._inflow is None:
                self._feed(nbytes)
            else:
                self._flow(self._inflow, nbytes)
        except Refused as refused:
            self._refuse(refused)
        except httptools.HttpParserUpgrade:
            self._refuse(Refused(400, "this server does not switch protocols"))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(
                cause if isinstance(cause, Refused) else Refused(400, "the request is not valid HTTP")
            )
        except httptools.HttpParserError as error:
            self._refuse(Refused(400, f"the request is not valid HTTP: {error}"))

    def _feed(self, count: int) -> None:
        """Bytes for the parser."""
        if not self._head_done:
            self._head_bytes += count
        else:
            self._after_bytes += count
        self._parser.feed_data(self.scratch[:count])
        if not self._head_done:
            if self._head_bytes > self.header_bytes_max:
                raise Refused(431, "the request's headers are too large")
        elif self._after_bytes > self.header_bytes_max + FRAMING_SHARE_MAX * self._body_bytes:
            raise Refused(431, "the request's body is framed in more bytes than it has")
        elif self._declared - self._body_bytes >= STRAIGHT_BYTES_MIN and self._body_bytes >= CAME_BYTES_MIN:
            self._inflow = Inflow(self._declared, self._body)
            self._body = []
            self._claim(self._inflow.size - self._body_bytes)

    def _flow(self, inflow: Inflow, count: int) -> None:
        """Bytes of a long body, where they are to stay."""
        self._claim(inflow.add(count))
        if inflow.complete:
            self.on_message_complete()
            self._parser = httptools.HttpRequestParser(self)  # the old one still waits for the body's end

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self.paused is None:
            self.paused = self.loop.create_future()
            self._paused_at = self.loop.time()

    def resume_writing(self) -> None:
        if self.paused is not None:
            if not self.paused.done():
                self.paused.set_result(None)
            self.paused = None

    def shutdown(self) -> None:
        """uvicorn is shutting down: finish what is under way, take nothing more."""
        if self._current is None and self.transport is not None:
            self.transport.close()
        elif self._current is not None:
            self._current.keep_alive = False

    # -- httptools

    def on_message_begin(self) -> None:
        self._in_message = True
        self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # trailers are read and dropped
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_done = True
        version = self._parser.get_http_version()
        head = framing.read(version, self._url, self._headers, self.header_bytes_max, self.body_bytes_max)
        self._declared, expects = head
        self._lasts = version == "1.1"
        if expects and self._current is None:
            assert self.transport is not None
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > self.body_bytes_max:
            raise Refused(413, f"the request body is over the limit of {self.body_bytes_max} bytes")
        self._claim(len(data))

    def on_message_complete(self) -> None:
        request = Request(self)
        parsed = httptools.parse_url(self._url)
        raw_path: bytes = parsed.path or b"/"
        request.method = self._parser.get_method().decode("ascii")
        request.raw_path = raw_path
        request.path = (
            raw_path.decode("latin-1") if b"%" not in raw_path else unquote(raw_path.decode("latin-1"))
        )
        request.query = parsed.query or b""
        request.headers = self._headers
        body = self._body
        request.body = self._inflow or (body[0] if len(body) == 1 else b"".join(body))
        request.old = not self._lasts
        request.keep_alive = self._lasts and self._parser.should_keep_alive()
        self.arriving.bytes -= self._claimed
        self._fresh()
        if self._current is None:
            self._answer(request)
        elif len(self._queue) < PIPELINE_MAX:
            # A client that has its whole answer already only came before we were done with the books.
            if self._queue or not self._current.done:
                self._pause_reading()
            self._queue.append(request)
        else:
            raise Refused(429, "too many requests are pipelined")

    # -- answering

    def _answer(self, request: Request) -> None:
        self._current = request
        task = self._task = self.loop.create_task(self._run(request))
        self.state.tasks.add(task)

    async def _run(self, request: Request) -> None:
        try:
            await self.app(request.scope(), request.receive, request.send)
        except StreamCut as error:
            log.info("an answer was cut: %s", error)
            self._cut()
        except Exception:
            log.exception("the application failed on %s %s", request.method, request.path)
            if request.started or request.left:
                self._abort()
            else:
                self._say(500, "the gateway failed on this request")
        finally:
            self._answered(request)

    def _answered(self, request: Request) -> None:
        self._current = None
        request.on_left = None  # else request and exchange hold one another until the collector comes by
        if self._task is not None:
            self.state.tasks.discard(self._task)
            self._task = None
        self.state.total_requests += 1
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if not request.done:
            self._cut()
        elif not request.keep_alive or self._closing:
            transport.close()
        else:
            self._since = self.loop.time()
            if self._queue:
                self._answer(self._queue.popleft())
            if not self._queue and not self._reading:
                self._reading = True
                transport.resume_reading()

    def _refuse(self, refused: Refused) -> None:
        """Say why and close: after such bytes nothing that follows can be trusted."""
        log.debug("a request of %s was not taken: %d %s", self.client, refused.status, refused.message)
        self.refused(refused.status)
        self._closing = True
        self._let_go()
        if self._current is None:
            self._say(refused.status, refused.message)
        else:
            self._current.keep_alive = False
            self._queue.clear()

    def _say(self, status: int, message: str) -> None:
        protocol = "messages" if b"/v1/messages" in self._url else "chat"
        text = msgspec.json.encode(shapes.error_json(protocol, status, message))
        if self.transport is not None:
            self.transport.write(
                (STATUS_LINES.get(status) or STATUS_LINES[400])
                + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
                % (len(text), text)
            )
            # a socket closed with unread bytes is reset, and the client would never read why
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)

    def _cut(self) -> None:
        """End an answer that cannot be completed: the client gets what there is, and sees that it is not all."""
        self._closing = True
        if self.transport is not None:
            self.transport.close()
            self.loop.call_later(LINGER_S, self.transport.abort)

    def _abort(self) -> None:
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    def _pause_reading(self) -> None:
        if self._reading and self.transport is not None:
            self._reading = False
            self.transport.pause_reading()

    def _tick(self) -> None:
        """One timer a connection: it looks now and then whether somebody is too slow."""
        self._timer = None
        if self._closing or self.transport is None:
            return
        if self.paused is not None and self.loop.time() - self._paused_at > self.patience.stall_s:
            log.info("a client that does not read was cut off")
            self._abort()
            return
        waits = self._current is None
        limit_s = self.patience.request_s if self._in_message else self.patience.idle_s
        late_s = self.loop.time() - self._since - limit_s
        if waits and late_s >= 0:
            if self._in_message:
                self._refuse(Refused(408, "the request did not arrive in time"))
            else:
                self.transport.close()
            return
        self._timer = self.loop.call_later(min(max(-late_s, TICK_S), TICK_S_MAX), self._tick)


def limited(
    *,
    header_bytes_max: int,
    body_bytes_max: int,
    bodies_bytes_max: int,
    patience: Patience | None = None,
    refused: Callable[[int], None] = HttpConnection.refused,
) -> type[HttpConnection]:
    """The protocol class with these limits, for `uvicorn.Config(http=…)`."""
    return type(
        "LimitedHttpConnection",
        (HttpConnection,),
        {
            "header_bytes_max": header_bytes_max,
            "body_bytes_max": body_bytes_max,
            "arriving": Arriving(bodies_bytes_max),
            "connections_max": clients_max(),
            "scratch": memoryview(bytearray(READ_BYTES)),
            "patience": patience or Patience(),
            "refused": staticmethod(refused),
        },
    )
