"""Long requests read by what is new in them: an agent's next one repeats all messages of its last, byte for byte.

Rule: what is taken for known was read before and is compared, every byte of it; what follows is read as if it stood
in its place. So a wrong guess of whose request this is costs a comparison and never a message. Bounded in bytes.

A body is remembered with the places at which its messages end. Of the next one as many messages are known as end in
bytes that both begin with; a mark of this process stands for them when the rest is decoded, and must come back as the
first of the messages, so that a body which only looks like the last one is read whole.
"""

from __future__ import annotations

import re
import uuid
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import msgspec

from agentserve.core.identity.evidence import Item
from agentserve.live.wire.canon import Canon
from agentserve.live.wire.conversation import Conversation

BODY_BYTES_MIN = 16 * 1024  # a shorter one is read as fast as it is compared
BYTES_MAX = 64 * 1024 * 1024  # of remembered bodies; most of them are kept for warming anyway
MESSAGES_MAX = 20_000  # of one body
MESSAGE_BYTES = 64  # of memory, for each message of a remembered body
PROTOCOLS = frozenset({"chat", "messages"})  # those whose messages stand in the field of that name

_FIELD = b'"messages"'
_OPENS = re.compile(rb'"messages"[ \t\n\r]*:[ \t\n\r]*\[[ \t\n\r]*')
_COMMA = re.compile(rb"[ \t\n\r]*,[ \t\n\r]*")
_CLOSES = re.compile(rb"[ \t\n\r]*\]")
_MARK = f"known-{uuid.uuid4().hex}"  # stands for what is known; nobody else can write it
_MARK_JSON = f'"{_MARK}"'.encode()


class _Pieces(msgspec.Struct):
    messages: list[msgspec.Raw]


_decode = msgspec.json.Decoder().decode
_decode_pieces = msgspec.json.Decoder(_Pieces).decode
_FAULTS = (msgspec.MsgspecError, UnicodeError, RecursionError)


class _Known(msgspec.Struct, kw_only=True, gc=False):
    """A body that was read."""

    raw: bytes
    opens: int  # where the list of its messages does
    ends: array[int]  # where each message ends
    items: list[Item | None]  # what each of them counts as
    systems: Sequence[str]  # texts of the system messages that come first

    @property
    def size(self) -> int:
        return len(self.raw) + MESSAGE_BYTES * len(self.ends)


class History:
    """The last long body of each that speaks: of a program, or of a connection."""

    def __init__(self, canon: Canon, *, bytes_max: int = BYTES_MAX) -> None:
        self._canon = canon
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._bytes = 0
        self._bytes_max = bytes_max

    def read(self, key: Hashable, protocol: str, raw: bytes) -> tuple[dict[str, Any], Conversation] | None:
        """The body, its messages as one `msgspec.Raw`, and what they say; None where it has to be read whole."""
        known = self._known.get(key)
        count = 0 if known is None else _common(known, raw)
        if known is None or count <= len(known.systems):
            return None
        at = known.ends[count - 1]
        rest = b"".join((raw[: known.opens + 1], _MARK_JSON, memoryview(raw)[at:]))
        try:
            body = _decode(rest)
            mark, *new = body["messages"]
            pieces = _decode_pieces(rest).messages
        except (*_FAULTS, KeyError, TypeError, ValueError):
            return None  # whose fault that is shows when it is read whole
        walked = _walk(raw, at, pieces[1:], follows=True) if mark == _MARK else None
        if walked is None:
            return None
        ends, closes = walked
        found = known.items[:count] + [self._canon.item(message) for message in new]
        systems = known.systems
        self._put(
            key,
            _Known(raw=raw, opens=known.opens, ends=known.ends[:count] + ends, items=found, systems=systems),
        )
        body["messages"] = msgspec.Raw(memoryview(raw)[known.opens : closes])
        return body, Conversation(protocol, [i for i in found if i is not None], systems, None, raw)

    def keep(self, key: Hashable, raw: bytes, messages: Any, systems: Sequence[str]) -> None:
        """Remember a body that was read whole: the next one may begin with it."""
        if not isinstance(messages, list) or not len(systems) < len(messages) <= MESSAGES_MAX:
            return
        pieces = _decode_pieces(raw).messages
        at = raw.find(_FIELD)
        while at >= 0:
            opened = _OPENS.match(raw, at)
            walked = None if opened is None else _walk(raw, opened.end(), pieces, follows=False)
            if opened is not None and walked is not None:
                opens = raw.index(b"[", at)
                items = [self._canon.item(message) for message in messages]
                self._put(key, _Known(raw=raw, opens=opens, ends=walked[0], items=items, systems=systems))
                return
            at = raw.find(_FIELD, at + 1)

    def _put(self, key: Hashable, known: _Known) -> None:
        before = self._known.pop(key, None)
        self._bytes += known.size - (before.size if before is not None else 0)
        self._known[key] = known
        while self._bytes > self._bytes_max:
            _, oldest = self._known.popitem(last=False)
            self._bytes -= oldest.size


def _common(known: _Known, raw: bytes) -> int:
    """How many of the known messages the body begins with."""
    view, ends = memoryview(known.raw), known.ends
    if raw.startswith(view[: ends[-1]]):  # as nearly always
        return len(ends)
    return bisect_left(ends, True, key=lambda end: not raw.startswith(view[:end]))


def _walk(raw: bytes, at: int, pieces: list[msgspec.Raw], *, follows: bool) -> tuple[array[int], int] | None:
    """Where each of the pieces ends that stand from there on, and behind them their list; None if they do not."""
    ends = array("q")
    for piece in pieces:
        if follows:
            comma = _COMMA.match(raw, at)
            if comma is None:
                return None
            at = comma.end()
        if not raw.startswith(piece, at):
            return None
        at += len(memoryview(piece))
        ends.append(at)
        follows = True
    closed = _CLOSES.match(raw, at)
    return None if closed is None else (ends, closed.end())
