"""The worker's side: an ASGI application that passes each request to the scheduler's process and plays what comes back.

Rule: it decides nothing. An answer comes in pieces from there, or as an order to fetch it from an engine; the client is
listened for meanwhile, and whoever leaves is reported at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from agentserve.errors import Overloaded
from agentserve.live import shapes
from agentserve.live.asgi import LEFT_EXTENSION, Receive, Scope, Send, StreamCut
from agentserve.live.upstream.lean import LeanUpstream
from agentserve.live.workers import frames as fr
from agentserve.live.workers.carrying import Carrying
from agentserve.live.workers.link import Link

log = logging.getLogger("agentserve.http")

ENGINES_MAX = 1024  # whose connections are kept


class Errand:
    """One request: what was said of it and is still to be played."""

    __slots__ = ("_frames", "_front", "_send", "_task", "_waiter", "left", "opened", "started")

    def __init__(self, front: Front, opened: fr.Opened, send: Send) -> None:
        self._front = front
        self._frames: deque[fr.Frame | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[bool] | None = None  # that fetches a reply
        self._send = send
        self.opened = opened
        self.left = False
        self.started = False

    def heard(self, frame: fr.Frame | None) -> None:
        """Something about this request; None when nothing will come any more."""
        if isinstance(frame, fr.Drop) and self._task is not None:
            self._task.cancel()
        self._frames.append(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def client_left(self) -> None:
        """The connection is gone: nobody wants the answer."""
        self.left = True
        self._front.link.send(fr.Left(request=self.opened.request))
        if self._task is not None:
            self._task.cancel()
        self.heard(None)

    async def play(self) -> None:
        """The answer, until it is whole."""
        while True:
            while not self._frames:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            frame = self._frames.popleft()
            if self.left:
                return
            if frame is None:
                if self.started:
                    raise StreamCut("the scheduler's process is gone")
                await refuse(self.opened.path, self._send)
                return
            if isinstance(frame, fr.Piece):
                await self._piece(frame)
                if not frame.more:
                    return
            elif isinstance(frame, fr.Carry):
                if await self._carried(frame):
                    return
            elif isinstance(frame, fr.Cut):
                raise StreamCut("the reply cannot be completed")

    async def _piece(self, frame: fr.Piece) -> None:
        if frame.status:
            self.started = True
            await self._send(
                {"type": "http.response.start", "status": frame.status, "headers": frame.headers}
            )
        await self._send({"type": "http.response.body", "body": frame.data, "more_body": frame.more})
        if frame.more:
            self._front.link.send(fr.Took(request=frame.request))

    async def _carried(self, frame: fr.Carry) -> bool:
        """Fetch the reply; was the client's answer ended by it?"""
        front = self._front
        carrying = Carrying(frame, self.opened.body, self._send, front.link.send)
        task = self._task = asyncio.get_running_loop().create_task(
            carrying.run(front.upstream(frame.order.url))
        )
        try:
            return await task
        except asyncio.CancelledError:
            if not task.cancelled() or self._cancelled():
                raise
            return False  # dropped: what comes next is said by the scheduler's process
        finally:
            self.started |= carrying.started
            self._task = None

    @staticmethod
    def _cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0


class Front:
    """The application."""

    def __init__(self, connections_max: int, lost: Callable[[], None]) -> None:
        self.link = Link(fr.ToWorker, heard=self._heard, lost=self._lost)
        self._tell_lost = lost
        self._errands: dict[int, Errand] = {}
        self._requests = 0
        self._upstreams: dict[str, LeanUpstream] = {}
        self._connections_max = connections_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await self.link.room()
        self._requests += 1
        opened = fr.Opened(
            request=self._requests,
            method=scope["method"],
            path=scope["path"],
            raw_path=scope["raw_path"],
            query=scope["query_string"],
            headers=scope["headers"],
            body=message.get("body", b""),
            client=scope["client"],
            server=scope["server"],
        )
        if not self.link.open:
            await refuse(opened.path, send)
            return
        errand = self._errands[opened.request] = Errand(self, opened, send)
        self.link.send(opened)
        scope["extensions"][LEFT_EXTENSION](errand.client_left)
        try:
            await errand.play()
        finally:
            del self._errands[opened.request]

    def upstream(self, url: str) -> LeanUpstream:
        """The connections to an engine."""
        found = self._upstreams.get(url)
        if found is None:
            if (
                len(self._upstreams) >= ENGINES_MAX
            ):  # engines come and go: those of the oldest end by themselves
                del self._upstreams[next(iter(self._upstreams))]
            found = self._upstreams[url] = LeanUpstream(url, connections_max=self._connections_max)
        return found

    def not_taken(self, status: int) -> None:
        """The listening side refused what is no request."""
        self.link.send(fr.NotTaken(request=0, status=status))

    def _heard(self, frame: fr.Frame) -> None:
        if isinstance(frame, fr.Ping):
            self.link.send(frame)
            return
        if isinstance(frame, fr.Level):
            logging.getLogger().setLevel(frame.level)
            return
        errand = self._errands.get(frame.request)
        if errand is not None:
            errand.heard(frame)

    def _lost(self) -> None:
        for errand in list(self._errands.values()):
            errand.heard(None)
        self._tell_lost()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for upstream in self._upstreams.values():
            await upstream.stop()
        await send({"type": "lifespan.shutdown.complete"})


async def refuse(path: str, send: Send) -> None:
    """Nobody is there to ask."""
    error = Overloaded(
        "this gateway is starting anew", remedy="send it again in a moment", retry_after_s=1.0, status=503
    )
    status, headers, body = shapes.refusal("messages" if "/v1/messages" in path else "chat", error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
