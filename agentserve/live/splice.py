"""Asking an engine for usage where the client did not, and keeping the answer from the client.

Rule: of a request one field is put in, by bytes; of a stream one event is left out, whole. Every other byte passes as
it is. A stream that is not understood passes untouched.
"""

from __future__ import annotations

import re
from typing import Any

ASK = b'"stream_options":{"include_usage":true},'
HELD_BYTES_MAX = 64 * 1024
_NO_CHOICES = (b'"choices":[]', b'"choices": []')
_USAGE = b'"usage"'
_NULL_USAGE = re.compile(rb'"usage":\s*null')


def wants_asking(protocol: str, body: dict[str, Any]) -> bool:
    """Is this a stream that will not tell its usage unless it is asked to?"""
    if protocol not in ("chat", "completions") or body.get("stream") is not True:
        return False
    options = body.get("stream_options")
    return not (isinstance(options, dict) and options.get("include_usage") is True)


def ask_for_usage(body: dict[str, Any], raw: bytes | None) -> bytes | None:
    """Put the field in: into `raw` where that is one cut, else into `body`, to be serialised anew (None)."""
    if raw is not None and "stream_options" not in body and body:
        at = raw.find(b"{")
        if at >= 0:
            return raw[: at + 1] + ASK + raw[at + 1 :]
    options = body.get("stream_options")
    body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return None


class UsageFilter:
    """Leaves the usage event out of a stream whose client did not ask for it.

    Only an event that starts in a chunk it looks suspicious in is held back, and never for longer than until its
    end is seen; all else passes in the chunk in which it came.
    """

    __slots__ = ("_held", "_in_event", "done")

    def __init__(self) -> None:
        self._held = b""  # the beginning of an event that may be the one
        self._in_event = False  # an event, already let through in part, goes on
        self.done = False  # the one event has been left out

    def feed(self, chunk: bytes) -> bytes:
        """What of this chunk the client gets now."""
        if self.done:
            return chunk
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        elif not self._in_event and _whole_and_plain(chunk):
            return chunk
        return self._sift(chunk)

    def finish(self) -> bytes:
        """The stream ended: what was held, unless it is the one."""
        held, self._held = self._held, b""
        return _breaks_before(held) if _is_usage(held) else held

    def _sift(self, chunk: bytes) -> bytes:
        out: list[bytes] = []
        at = 0
        if not self._in_event and (whole := _events_end(chunk)) > 0 and _whole_and_plain(chunk[:whole]):
            out.append(chunk[:whole])  # as nearly always: only what follows them need be looked at
            at = whole
        while at < len(chunk):
            end = _event_end(chunk, at)
            if end < 0:
                rest = chunk[at:]
                if self._in_event or len(rest) > HELD_BYTES_MAX:
                    self._in_event = True
                    out.append(rest)
                else:
                    self._held = rest
                break
            event = chunk[at:end]
            if self._in_event:
                self._in_event = False
                out.append(event)
            elif _is_usage(event):
                self.done = True
                out += _breaks_before(event), chunk[end:]
                break
            else:
                out.append(event)
            at = end
        return b"".join(out)


def _whole_and_plain(chunk: bytes) -> bool:
    return (
        chunk.endswith((b"\n\n", b"\r\n\r\n")) and _NO_CHOICES[0] not in chunk and _NO_CHOICES[1] not in chunk
    )


def _event_end(chunk: bytes, at: int) -> int:
    """Where the event that begins at `at` ends, its blank line included; -1 when that is yet to come."""
    plain = chunk.find(b"\n\n", at)
    framed = chunk.find(b"\r\n\r\n", at)
    if plain < 0 and framed < 0:
        return -1
    if framed >= 0 and (plain < 0 or framed < plain):
        return framed + 4
    return plain + 2


def _events_end(chunk: bytes) -> int:
    """Where the last whole event ends; 0 when there is none."""
    plain, framed = chunk.rfind(b"\n\n"), chunk.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, framed + 4 if framed >= 0 else 0)


def _breaks_before(event: bytes) -> bytes:
    """Line breaks of the event before, which came in a chunk of their own."""
    return event[: len(event) - len(event.lstrip(b"\r\n"))]


def _is_usage(event: bytes) -> bool:
    return _USAGE in event and not _NULL_USAGE.search(event) and any(mark in event for mark in _NO_CHOICES)
