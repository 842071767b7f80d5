"""The scheduler's side of one worker: its requests, each served as any ASGI application serves one.

Rule: the application cannot tell a request that came through a worker from one of its own server, but that it may let
the worker carry a reply. A worker that is lost has left with all of its clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec
from uvicorn.server import ServerState

from agentserve.live import shapes
from agentserve.live.asgi import LEFT_EXTENSION, StreamCut
from agentserve.live.workers import frames as fr
from agentserve.live.workers.link import Link

log = logging.getLogger("agentserve.http")

_ASGI = {"version": "3.0", "spec_version": "2.3"}
App = Callable[..., Any]


class Visit:
    """One request, and its answer by way of the worker."""

    __slots__ = (
        "_began", "_carried", "_head", "_link", "_loop", "_on_left", "_opened", "_read", "_taken", "_turn", "_waiter",
        "done", "left", "started",
    )  # fmt: skip

    def __init__(self, opened: fr.Opened, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._opened = opened
        self._link = link
        self._loop = loop
        self._read = False
        self._head: tuple[int, fr.Headers] | None = None  # kept until the first piece of the body is there
        self._on_left: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None  # that the worker took the last piece
        self._turn = 0
        self._began: Callable[[], None] | None = None
        self._carried: asyncio.Future[fr.Carried | fr.Broke] | None = None
        self.started = False  # the client got something, or will
        self.done = False
        self.left = False

    def scope(self, app_state: dict[str, Any]) -> dict[str, Any]:
        """What ASGI calls a scope."""
        opened = self._opened
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "method": opened.method,
            "scheme": "http",
            "path": opened.path,
            "raw_path": opened.raw_path,
            "query_string": opened.query,
            "root_path": "",
            "headers": opened.headers,
            "client": opened.client,
            "server": opened.server,
            "state": app_state,
            "extensions": {LEFT_EXTENSION: self._tell_left, fr.CARRIES: self.carry},
        }

    def _tell_left(self, callback: Callable[[], None]) -> None:
        self._on_left = callback
        if self.left:
            callback()

    # -- ASGI

    async def receive(self) -> MutableMapping[str, Any]:
        """The request, then nothing until the client leaves."""
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._opened.body, "more_body": False}
        if not self.left and not self.done:
            self._waiter = self._loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """A part of the answer; waits while the client is behind in reading."""
        if self.left:
            return
        if message["type"] == "http.response.start":
            self._head = (message["status"], list(message.get("headers", ())))
            return
        if message["type"] != "http.response.body":
            return
        more = message.get("more_body", False)
        status, headers = self._head or (0, [])
        self._head = None
        self.started = True
        self.done = not more
        data = bytes(message.get("body", b""))
        self._link.send(
            fr.Piece(request=self._opened.request, data=data, more=more, status=status, headers=headers)
        )
        if more:
            self._taken = self._loop.create_future()
            try:
                await self._taken
            finally:
                self._taken = None

    async def carry(self, order: fr.Order, began: Callable[[], None]) -> fr.Carried | fr.Broke:
        """The worker fetches the reply and relays it; how that ended. Cancelling makes it stop."""
        self._turn += 1
        self._began = began
        self._carried = self._loop.create_future()
        self._link.send(fr.Carry(request=self._opened.request, turn=self._turn, order=order))
        try:
            ending = await self._carried
        except asyncio.CancelledError:
            if not self.left:
                self._link.send(fr.Drop(request=self._opened.request, turn=self._turn))
            raise
        finally:
            self._carried = self._began = None
        self.done = ending.ended if isinstance(ending, fr.Broke) else not ending.gave_way
        return ending

    # -- what the worker says

    def heard(self, frame: fr.Frame) -> None:
        """Something about this request."""
        if isinstance(frame, fr.Took):
            if self._taken is not None and not self._taken.done():
                self._taken.set_result(None)
        elif isinstance(frame, fr.Left):
            self.gone()
        elif isinstance(frame, (fr.Began, fr.Carried, fr.Broke)) and frame.turn == self._turn:
            self._of_carrying(frame)

    def _of_carrying(self, frame: fr.Began | fr.Carried | fr.Broke) -> None:
        carried = self._carried
        if carried is None or carried.done():
            return
        if isinstance(frame, fr.Began):
            self.started = True
            if self._began is not None:
                self._began()
        else:
            carried.set_result(frame)

    def gone(self) -> None:
        """The client left, or its worker did."""
        self.left = True
        for waiting in (self._waiter, self._taken):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        if self._on_left is not None and not self.done:
            self._on_left()

    def over(self) -> None:
        """The application is done with it."""
        self._on_left = None
        if not self.done and not self.left:
            self._link.send(fr.Cut(request=self._opened.request))

    def refuse(self) -> None:
        """The application failed, and nothing was said yet."""
        protocol = "messages" if "/v1/messages" in self._opened.path else "chat"
        body = msgspec.json.encode(shapes.error_json(protocol, 500, "the gateway failed on this request"))
        headers = [shapes.JSON_TYPE, (b"content-length", b"%d" % len(body))]
        self.done = True
        self._link.send(
            fr.Piece(request=self._opened.request, data=body, more=False, status=500, headers=headers)
        )


class Desk(Link):
    """The scheduler's end of one worker's link; to uvicorn it is a connection that ends when the worker does."""

    def __init__(
        self, app: App, state: ServerState, app_state: dict[str, Any], not_taken: Callable[[int], None]
    ) -> None:
        super().__init__(fr.FromWorker, heard=self._frame, lost=self._gone)
        self._app = app
        self._state = state
        self._app_state = app_state
        self._not_taken = not_taken
        self._level: int | None = None  # that the worker was told to log
        self._loop = asyncio.get_running_loop()
        self._visits: dict[int, Visit] = {}
        self.heard_at = self._loop.time()
        state.connections.add(self)  # type: ignore[arg-type]

    def shutdown(self) -> None:
        """uvicorn is shutting down: the worker is told by a signal, and ends when its clients have their answers."""

    def ping(self) -> None:
        """Ask whether the worker is there; `heard_at` tells whether it was. Tell it what to log, if that changed."""
        level = logging.getLogger().getEffectiveLevel()
        if level != self._level:
            self._level = level
            self.send(fr.Level(request=0, level=level))
        self.send(fr.Ping(request=0))

    def _frame(self, frame: fr.Frame) -> None:
        self.heard_at = self._loop.time()
        if isinstance(frame, fr.Opened):
            visit = self._visits[frame.request] = Visit(frame, self, self._loop)
            task = self._loop.create_task(self._serve(frame, visit))
            self._state.tasks.add(task)
            task.add_done_callback(self._state.tasks.discard)
        elif isinstance(frame, fr.NotTaken):
            self._not_taken(frame.status)
        elif (known := self._visits.get(frame.request)) is not None:
            known.heard(frame)

    async def _serve(self, opened: fr.Opened, visit: Visit) -> None:
        try:
            await self._app(visit.scope(self._app_state), visit.receive, visit.send)
        except StreamCut as error:
            log.info("an answer was cut: %s", error)
        except Exception:
            log.exception("the application failed on %s %s", opened.method, opened.path)
            if not visit.started and not visit.left:
                visit.refuse()
        finally:
            self._visits.pop(opened.request, None)
            self._state.total_requests += 1
            visit.over()

    def _gone(self) -> None:
        self._state.connections.discard(self)
        for visit in list(self._visits.values()):
            visit.gone()
