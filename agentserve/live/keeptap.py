"""What listens to the reply of a request for a response, so that it can be referred to later.

Rule: bytes pass as they are, but for what the engine was not told of (an earlier response, a conversation): that is put
back into every response object that the client sees. A reply too long to be held passes as it is and is not kept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from agentserve.live.wire import SseSplitter

if TYPE_CHECKING:
    from agentserve.live.thread import Thread

_LAST = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"')
# where a response object begins: in an event, after whichever of the event's own fields; or as the whole reply
_RESPONSE_EVENT = re.compile(
    rb'^data: ?\{\s*(?:"type":\s*"[a-z_.]+",\s*|"sequence_number":\s*\d+,\s*)*"response":\s*\{', re.MULTILINE
)
_OBJECT = re.compile(rb"\A\s*\{")
_encode = msgspec.json.encode
HELD_BYTES_MAX = 32 * 1024 * 1024


class KeepTap:
    """Listens to a reply for the response object; what the engine was not told of is put back into what the client
    sees of it."""

    def __init__(self, thread: Thread, *, streamed: bool) -> None:
        self._thread = thread
        self._streamed = streamed
        self._splitter = SseSplitter()
        self._last = b""
        self._held = b""
        self._parts: list[bytes] | None = []  # of a reply that is no stream; None: it passes as it is
        self._parts_bytes = 0
        self._put_back: list[tuple[bytes, bytes]] = []
        if thread.previous is not None:
            self._put_back.append((b"previous_response_id", _encode(thread.previous)))
        if thread.conversation is not None:
            self._put_back.append((b"conversation", _encode({"id": thread.conversation})))

    def feed(self, chunk: bytes) -> bytes:
        if not self._streamed:
            return self._hold(chunk)
        for data in self._splitter.feed(chunk):
            self._look(data)
        if not self._put_back:
            return chunk
        held = self._held + chunk
        if len(held) > HELD_BYTES_MAX:
            self._put_back, self._held = [], b""
            return held
        end = max(held.rfind(b"\n\n") + 2, held.rfind(b"\n\r\n") + 3)  # of the last whole event
        end = 0 if end < 4 else end
        self._held = held[end:]
        return self._filled(held[:end], _RESPONSE_EVENT)

    def finish(self) -> bytes:
        if self._streamed:
            for data in self._splitter.finish():
                self._look(data)
        else:
            self._last = self._held = b"".join(self._parts or ())
        kept = self._keep()
        return (
            self._filled(self._held, _RESPONSE_EVENT if self._streamed else _OBJECT) if kept else self._held
        )

    def _hold(self, chunk: bytes) -> bytes:
        """A piece of a reply that is no stream: it is looked at when it is whole."""
        if self._parts is None:
            return chunk
        self._parts.append(chunk)
        self._parts_bytes += len(chunk)
        if self._parts_bytes <= HELD_BYTES_MAX:
            return b""
        held, self._parts = b"".join(self._parts), None
        return held

    def _filled(self, text: bytes, beginning: re.Pattern[bytes]) -> bytes:
        """The fields that are put back, in every response object that begins so."""
        starts = [match.end() for match in beginning.finditer(text)] if self._put_back else []
        for start, end in reversed(list(zip(starts, [*starts[1:], len(text)], strict=False))):
            shown = text[start:end]
            for name, value in self._put_back:
                known = re.search(rb'"%b":\s*(null)?' % name, shown)
                if known is None:
                    shown = b'"%b":%b,%b' % (name, value, shown)
                elif known[1] is not None:
                    shown = shown[: known.start(1)] + value + shown[known.end(1) :]
            text = text[:start] + shown + text[end:]
        return text

    def _look(self, data: bytes) -> None:
        if any(mark in data[:256] or mark in data[-256:] for mark in _LAST):
            self._last = data

    def _keep(self) -> bool:
        """Remember the response. False when the reply is none."""
        try:
            said = msgspec.json.decode(self._last)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return False
        body = said.get("response") if isinstance(said, dict) and self._streamed else said
        if not isinstance(body, dict) or body.get("object") != "response":
            return False
        self._thread.keep(body, len(self._last))
        return True
