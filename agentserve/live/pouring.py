"""An engine's reply on its way to a client: every byte passed on as it came, and read beside.

Rule: it knows the reply, its taps and its reader; to whom the bytes go, and who is told of them, is its caller's. Until
`first` has returned nothing has been poured, so that a step whose engine fails before may still go elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from agentserve.errors import EngineBroke, EngineError
from agentserve.live import shapes
from agentserve.live.headers import content_length, returned
from agentserve.live.taps import Taps
from agentserve.live.upstream import UpstreamReply
from agentserve.live.wire import Protocol as WireProtocol
from agentserve.live.wire import reader_of

BUSY_STATUSES = frozenset({502, 503, 504})  # of an engine that had better be left alone for now
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Write(Protocol):
    """Where the pieces go; waiting is back-pressure."""

    def __call__(self, data: bytes, *, more: bool) -> Awaitable[None]: ...


class Pouring:
    """One reply."""

    __slots__ = (
        "_chunk",
        "_heard_last",
        "_protocol",
        "_reply",
        "_streamed",
        "_tap",
        "headers",
        "reader",
    )

    def __init__(self, reply: UpstreamReply, taps: Taps, protocol: WireProtocol) -> None:
        self._reply = reply
        self._protocol = protocol
        self._streamed = is_stream(reply.headers)
        self._tap = taps.chain(streamed=self._streamed)
        self._heard_last = taps.translated is not None  # what is read is what the client gets
        self._chunk = b""
        self.reader = reader_of(protocol, streamed=self._streamed)
        self.headers = returned(reply.headers)  # that the client gets of the engine's
        length = content_length(reply.headers)
        if length is not None and self._tap is None:
            self.headers.append((b"content-length", length))

    async def first(self) -> None:
        """A byte of the body is here, or the end of an empty one."""
        self._chunk = await self._reply.read()

    async def rest(self, write: Write) -> bytes:
        """All but the last piece is written; the last is returned, for its writer to have the end to itself.

        An engine that fails meanwhile is raised; a stream that breaks off between two events says so first.
        """
        reply, tap, chunk, last = self._reply, self._tap, self._chunk, b""
        try:
            while True:
                done = reply.done
                last = chunk or last
                out = chunk if tap is None else tap.feed(chunk)
                if done and tap is not None:
                    out += tap.finish()
                self.reader.feed(out if self._heard_last else chunk)
                if done:
                    return out
                if out:
                    await write(out, more=True)
                chunk = await reply.read()
        except EngineError as error:
            if self._streamed and (not last or last.endswith(EVENT_ENDS)):
                await write(shapes.stream_error(self._protocol, error), more=False)
            raise


def is_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    """Does the engine answer with server-sent events?"""
    for name, value in headers:
        if name == b"content-type":
            return b"event-stream" in value
    return False


def _is_page(headers: list[tuple[bytes, bytes]]) -> bool:
    """Is it a web page?"""
    for name, value in headers:  # noqa: SIM110 - a generator would cost more than what it runs
        if name == b"content-type" and value.startswith(b"text/html"):
            return True
    return False


def check_answer(reply: UpstreamReply) -> None:
    """Refuse what is no engine's: a redirect, which nobody is to follow, or a page for people."""
    if 300 <= reply.status < 400:
        fault = f"the engine answered with a redirect ({reply.status})"
    elif reply.status == 200 and _is_page(reply.headers):
        fault = "the engine answered with a web page"
    else:
        return
    raise EngineBroke(fault, remedy="let its url be where the engine itself listens")
