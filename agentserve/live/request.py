"""One request of a client's connection, and its answer written as HTTP/1.1: what ASGI calls scope, receive and send.

Rule: framing is decided here and nowhere else: an answer is as long as it said, or chunked, or, for HTTP/1.0, all that
comes until the connection ends; and a header is one line. The head waits for the first piece of the body, so that a
small answer is one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from agentserve.live.arriving import Inflow
from agentserve.live.asgi import LEFT_EXTENSION, StreamCut

if TYPE_CHECKING:
    from agentserve.live.server import HttpConnection

STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
}
LF, CR = b"\n\r"  # as numbers, see `server`
_CLOSES = (b"connection", b"close")
_END = (b"", b"")
# 2.3: applications are told of a client that left by `receive`, not by a failing `send`
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Request:
    """One request of a connection, and its answer."""

    __slots__ = (
        "body", "chunked", "connection", "done", "headers", "keep_alive", "left", "length", "method", "old",
        "on_left", "path", "pending_head", "query", "raw_path", "read", "started", "to_the_end", "waiter",
    )  # fmt: skip

    def __init__(self, connection: HttpConnection) -> None:
        self.connection = connection
        self.method = ""
        self.path = ""
        self.raw_path = b""
        self.query = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: bytes | Inflow = b""
        self.read = False
        self.keep_alive = True
        self.on_left: Callable[[], None] | None = None
        self.left = False
        self.waiter: asyncio.Future[None] | None = None
        self.pending_head: bytes | None = None  # kept until the first piece of the body is there
        self.old = False  # of HTTP/1.0, which knows no chunks
        self.chunked = False
        self.to_the_end = False  # the answer ends with its connection
        self.length = -1  # body bytes still owed to the declared length
        self.started = False
        self.done = False

    def scope(self) -> dict[str, Any]:
        """What ASGI calls a scope."""
        connection = self.connection
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query,
            "root_path": "",
            "headers": self.headers,
            "client": connection.client,
            "server": connection.server,
            "state": connection.app_state,
            "extensions": {LEFT_EXTENSION: self.tell_left},
        }

    def tell_left(self, callback: Callable[[], None]) -> None:
        """Call this back when the client leaves before its answer is whole."""
        self.on_left = callback
        if self.left:
            callback()

    def client_left(self) -> None:
        """The connection is gone."""
        self.left = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
        if self.on_left is not None and not self.done:
            self.on_left()

    # -- ASGI

    async def receive(self) -> MutableMapping[str, Any]:
        if not self.read:
            self.read = True
            body, self.body = self.body, b""
            # by now the loop has let go of what it wrote a long one into
            body = body if isinstance(body, bytes) else body.whole()
            return {"type": "http.request", "body": body, "more_body": False}
        if not self.left and not self.done:
            self.waiter = self.connection.loop.create_future()
            await self.waiter
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.left:
            return
        if message["type"] == "http.response.body":
            self._send_body(message.get("body", b""), message.get("more_body", False))
            if self.connection.paused is not None and not self.done:
                await self.connection.paused
        elif message["type"] == "http.response.start":
            self._send_head(message["status"], message.get("headers", ()))

    def _send_head(self, status: int, headers: Any) -> None:
        if self.started:
            raise RuntimeError("the answer has begun already")
        self.started = True
        headers = [*headers, *self.connection.state.default_headers]
        said = dict(headers)
        if said.get(b"connection") == b"close":
            self.keep_alive = False
            headers = [pair for pair in headers if pair != _CLOSES]
        lines = list(map(b": ".join, headers))
        text = b"".join(lines)
        if LF in text or CR in text:
            raise RuntimeError("a header of the answer holds a line break")
        length = said.get(b"content-length")
        if self.method == "HEAD" or status in (204, 304):
            self.length = 0
        elif length is not None:
            self.length = int(length)
        elif self.old:
            self.to_the_end = True
        else:
            self.chunked = True
            lines.append(b"transfer-encoding: chunked")
        if not self.keep_alive:
            lines.append(b"connection: close")
        begin = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        lines += _END
        self.pending_head = begin + b"\r\n".join(lines)

    def _send_body(self, data: bytes, more: bool) -> None:
        if not self.started or self.done:
            raise RuntimeError("a body without a head, or after the end")
        head, self.pending_head = self.pending_head, None
        if self.chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if not more:
                data += b"0\r\n\r\n"
        elif self.method == "HEAD":
            data = b""  # its answer is a head alone
        elif not self.to_the_end:
            self.length -= len(data)
            if self.length < 0:
                raise StreamCut("the answer is longer than it said")
        if head is not None:
            data = head + data
        transport = self.connection.transport
        if data and transport is not None:
            transport.write(data)
        if not more:
            if self.length > 0 and not self.chunked:
                raise StreamCut("the answer is shorter than it said")
            self.done = True
