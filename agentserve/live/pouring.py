"""An engine's reply on its way to a client: every byte passed on as it came, and read beside.

Rule: it knows the reply, its taps and its reader; to whom the bytes go, and who is told of them, is its caller's. Until
`first` has returned nothing has been poured, so that a step whose engine fails before may still go elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from agentserve.live.headers import content_length, returned
from agentserve.live.taps import Taps
from agentserve.live.upstream import UpstreamReply
from agentserve.live.wire import Protocol as WireProtocol
from agentserve.live.wire import ReplyReader

BUSY_STATUSES = frozenset({502, 503, 504})  # of an engine that had better be left alone for now
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Write(Protocol):
    """Where the pieces go; waiting is back-pressure."""

    def __call__(self, data: bytes, *, more: bool) -> Awaitable[None]: ...


class Pouring:
    """One reply."""

    __slots__ = ("_chunk", "_heard_last", "_last", "_reply", "_streamed", "_tap", "headers", "reader")

    def __init__(self, reply: UpstreamReply, taps: Taps, protocol: WireProtocol) -> None:
        self._reply = reply
        self._streamed = is_stream(reply.headers)
        self._tap = taps.chain(streamed=self._streamed)
        self._heard_last = taps.translated is not None  # what is read is what the client gets
        self._chunk = self._last = b""
        self.reader = ReplyReader(protocol, streamed=self._streamed)
        self.headers = returned(reply.headers)  # that the client gets of the engine's
        length = content_length(reply.headers)
        if length is not None and self._tap is None:
            self.headers.append((b"content-length", length))

    async def first(self) -> None:
        """A byte of the body is here, or the end of an empty one."""
        self._chunk = await self._reply.read()

    async def rest(self, write: Write) -> bytes:
        """All but the last piece is written; the last is returned, for its writer to have the end to itself."""
        reply, tap, reader, chunk = self._reply, self._tap, self.reader, self._chunk
        while True:
            done = reply.done
            self._last = chunk or self._last
            out = chunk if tap is None else tap.feed(chunk)
            if done and tap is not None:
                out += tap.finish()
            reader.feed(out if self._heard_last else chunk)
            if done:
                return out
            if out:
                await write(out, more=True)
            chunk = await reply.read()

    @property
    def orderly(self) -> bool:
        """Can a stream that broke off here still say so? Between two events it can."""
        return self._streamed and (not self._last or self._last.endswith(EVENT_ENDS))


def is_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    """Does the engine answer with server-sent events?"""
    for name, value in headers:
        if name == b"content-type":
            return b"event-stream" in value
    return False


def not_an_answer(reply: UpstreamReply) -> str | None:
    """What is wrong with a reply that is no engine's: a redirect, which nobody is to follow, or a page for people."""
    if 300 <= reply.status < 400:
        return f"the engine answered with a redirect ({reply.status})"
    if reply.status == 200:
        for name, value in reply.headers:
            if name == b"content-type":
                return "the engine answered with a web page" if value.startswith(b"text/html") else None
    return None
