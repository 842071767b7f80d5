"""One client's request for a step, from its arrival to its record: what is known of it, and how to answer it.

Rule: state and ASGI plumbing only; the relay decides what happens when. Whoever wants it stopped, be it the client
that left or the scheduler that lost the engine, cancels the exchange's own task, and the exchange says why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import msgspec

from agentserve.core import decisions as do
from agentserve.core.identity import Resolved
from agentserve.errors import BadRequest, TooLarge
from agentserve.live import shapes
from agentserve.live.asgi import LEFT_EXTENSION, Receive, Scope, Send
from agentserve.live.auth import Principal
from agentserve.live.thread import Thread
from agentserve.live.wire import Call, Protocol
from agentserve.ports import Try

_decode = msgspec.json.Decoder().decode


class Exchange:
    """One request."""

    __slots__ = (
        "aborted", "arrived_at", "attempts", "body", "call", "decision", "dispatched_at", "ended", "engine",
        "first_byte_at", "headers", "left", "named", "principal", "protocol", "queue_s", "raw", "reasons", "receive",
        "resolved", "scope", "send", "started", "started_clock", "step", "task", "thread", "tokens_counted", "tries",
        "upstream_path", "watcher",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        protocol: Protocol,
        path: str,
        program: str | None,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.protocol: Protocol = protocol
        self.named = program  # by the path
        self.upstream_path = path
        self.step = ""
        self.headers: dict[str, str] = {}
        self.raw = b""
        # Of a long request the messages may be one `msgspec.Raw`; empty once it was let go of.
        self.body: dict[str, Any] = {}
        self.principal: Principal | None = None
        self.call: Call | None = None
        self.resolved: Resolved | None = None
        self.decision: do.Dispatch | None = None
        self.engine = ""
        self.attempts = 0
        self.tries: tuple[Try, ...] = ()  # attempts that ended before a byte came
        self.queue_s = 0.0
        self.arrived_at = 0.0  # epoch
        self.started_clock = 0.0  # monotonic, when we began to work on it
        self.dispatched_at: float | None = None
        self.first_byte_at: float | None = None
        self.reasons: list[do.AnyDecision] = []  # everything that was decided about the step
        self.started = False  # a byte of the answer went to the client
        self.ended = False  # the answer is complete
        self.left = False  # the client is gone
        self.aborted = ""  # why the engine's side was stopped, if it was
        self.tokens_counted = False
        self.thread: Thread | None = None  # of a request for a response: what it hangs on
        self.task: asyncio.Task[Any] | None = None
        self.watcher: asyncio.Task[None] | None = None

    # -- where its time went

    def now(self) -> float:
        """Epoch seconds that pass evenly since it arrived, whatever this machine's clock is set to meanwhile."""
        return self.arrived_at + time.perf_counter() - self.started_clock

    def tried(self) -> None:
        """The attempt under way ended, and no byte of a reply had come."""
        self.tries = (*self.tries, Try(self.engine, self.dispatched_at or self.arrived_at, self.now()))

    def own_s(self, until: float) -> float:
        """Our own part of the time from its arrival: without its waits for room and what failed at engines."""
        own_s = until - self.arrived_at - self.queue_s
        for attempt in self.tries:
            own_s -= attempt.ended_at - attempt.sent_at
        return own_s if own_s > 0.0 else 0.0

    # -- who stops it

    def abort(self, reason: str) -> None:
        """The scheduler or the operator stops the step upstream."""
        if self.task is not None and not self.left and not self.aborted:
            self.aborted = reason
            self.task.cancel()

    def client_left(self) -> None:
        """The client closed its connection."""
        if self.task is not None and not self.left:
            self.left = True
            self.task.cancel()

    def watch_client(self) -> None:
        """Be told when the client leaves; after the body was read."""
        self.task = asyncio.current_task()
        tell = self.scope.get("extensions", _EMPTY).get(LEFT_EXTENSION)
        if tell is not None:
            tell(self.client_left)
        else:
            self.watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.client_left()
                return

    def stop_watching(self) -> None:
        """The answer is complete: what the client does now does not matter."""
        self.task = None
        if self.watcher is not None:
            self.watcher.cancel()
            self.watcher = None

    # -- the request

    async def read_body(self, bytes_max: int) -> bytes:
        """The whole body, bounded."""
        declared = self.headers.get("content-length")
        if declared is not None and declared.isdigit() and int(declared) > bytes_max:
            raise _too_large(bytes_max)
        message = await self.receive()
        if not message.get("more_body", False):
            body = message.get("body", b"")
            if message["type"] == "http.disconnect":
                self.left = True
                raise BadRequest("the client left before its request was whole")
            if len(body) > bytes_max:
                raise _too_large(bytes_max)
            return bytes(body)
        parts = [message.get("body", b"")]
        size = len(parts[0])
        while message.get("more_body", False):
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.left = True
                raise BadRequest("the client left before its request was whole")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > bytes_max:
                raise _too_large(bytes_max)
        return b"".join(parts)

    def rest(self) -> None:
        """The request waits: its bytes are all of it that is kept."""
        self.body = {}
        if self.call is not None:
            self.call.said.forget()

    def whole(self) -> dict[str, Any]:
        """The body with all that is in it; nobody else changes it."""
        body: dict[str, Any] = _decode(self.raw)
        return body

    # -- the answer

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> Awaitable[None]:
        """The head of the answer."""
        self.started = True
        return self.send({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes, *, more: bool) -> Awaitable[None]:
        """A piece of the answer; back-pressure makes this wait."""
        self.ended = not more
        return self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def refuse(self, error: Exception, extra: list[tuple[bytes, bytes]]) -> int:
        """Answer with an error, in the protocol's shape; returns the status."""
        status, headers, body = shapes.refusal(self.protocol, error)
        await self.start(status, headers + extra)
        await self.write(body, more=False)
        return status


_EMPTY: dict[str, Any] = {}


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(
        f"the request body is over the limit of {bytes_max} bytes",
        remedy="send less context, or raise limits.body_bytes_max",
    )
