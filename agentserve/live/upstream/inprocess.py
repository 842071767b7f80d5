"""An engine that is an ASGI application in this process, such as the embedded emulated one.

Rule: it behaves as an engine behind a socket does: bytes both ways, a bounded buffer between, and a reply that is
closed early is a disconnect to the application. Nothing of the two sides is shared but bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from agentserve.errors import EngineBroke, EngineTimeout, EngineUnreachable
from agentserve.live.upstream.seam import Deadlines, RawHeaders
from agentserve.ports import Asgi

BUFFERED_BYTES_MAX = 256 * 1024
LEAVE_S = 2.0  # what an application gets to notice that its client is gone


class InProcessReply:
    """One exchange with the application."""

    def __init__(self, app: Asgi, scope: dict[str, Any], body: bytes, deadlines: Deadlines) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._loop = asyncio.get_running_loop()
        self._deadlines = deadlines
        self._overall_at = self._loop.time() + deadlines.overall_s
        self._request: bytes | None = body
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._whole = False
        self._closed = False
        self._changed = asyncio.Event()  # the application did something
        self._room = asyncio.Event()
        self._room.set()
        self._left = asyncio.Event()  # the client is gone, or the reply is whole
        self._error: Exception | None = None
        self.task = self._loop.create_task(self._run(app, scope))

    async def _run(self, app: Asgi, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
            if not self._whole:
                self._error = EngineUnreachable("the engine ended its reply early")
        except (asyncio.CancelledError, OSError):
            self._error = self._error or EngineUnreachable("the engine's reply was closed")
        except Exception as error:
            self._error = EngineBroke(f"the engine raised {type(error).__name__}: {error}")
        finally:
            self._changed.set()

    async def _receive(self) -> dict[str, Any]:
        if self._request is not None:
            body, self._request = self._request, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._closed:
            raise OSError("the client is gone")
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            self.headers = [(bytes(n).lower(), bytes(v)) for n, v in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            if chunk := message.get("body", b""):
                self._chunks.append(chunk)
                self._buffered += len(chunk)
            if not message.get("more_body", False):
                self._whole = True
                self._left.set()
        self._changed.set()
        if self._buffered > BUFFERED_BYTES_MAX and not self._whole:
            self._room.clear()
            await self._room.wait()

    async def wait_head(self) -> None:
        """Until the application began to reply."""
        await self._wait(self._deadlines.first_byte_s, "for the first byte", lambda: bool(self.status))

    @property
    def done(self) -> bool:
        return self._whole and not self._chunks

    async def read(self) -> bytes:
        if not self._chunks and not self._whole:
            ready = lambda: bool(self._chunks) or self._whole  # noqa: E731
            await self._wait(self._deadlines.idle_s, "between two bytes", ready)
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        self._room.set()
        return data

    async def _wait(self, seconds: float, word: str, ready: Any) -> None:
        until = min(self._loop.time() + seconds, self._overall_at)
        try:
            async with asyncio.timeout_at(until):
                while not ready():
                    if self._error is not None:
                        raise self._error
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise EngineTimeout(f"the engine took too long: waited {word}") from None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._left.set()
        self._room.set()
        if not self.task.done():
            # it is told of the disconnect first, and cancelled when it does not leave by itself
            leave = self._loop.call_later(LEAVE_S, self.task.cancel)
            self.task.add_done_callback(lambda _: leave.cancel())


class InProcessUpstream:
    """The way to an application in this process."""

    def __init__(self, app: Asgi) -> None:
        self._app = app
        self._replies: set[InProcessReply] = set()

    async def send(
        self, method: str, path: str, headers: RawHeaders, body: bytes, *, deadlines: Deadlines
    ) -> InProcessReply:
        target, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": target,
            "raw_path": target.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [(n.lower(), v) for n, v in headers] + [(b"content-length", b"%d" % len(body))],
            "client": ("127.0.0.1", 0),
            "server": ("in-process", 0),
        }
        reply = InProcessReply(self._app, scope, body, deadlines)
        self._replies.add(reply)
        reply.task.add_done_callback(lambda _: self._replies.discard(reply))
        try:
            await reply.wait_head()
        except BaseException:
            reply.close()
            raise
        return reply

    async def stop(self) -> None:
        for reply in list(self._replies):
            reply.close()
        tasks = [reply.task for reply in self._replies]
        if tasks:
            await asyncio.wait(tasks, timeout=LEAVE_S + 1.0)
