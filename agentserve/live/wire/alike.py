"""Events of a chat stream that differ in nothing but a piece of text: read together, without decoding one of them.

    alike = Alike.of(event)            # of an event that was decoded and is a piece of text and nothing else
    read, text = alike.text(data)      # how far such events go from the start of `data`, and their text

Rule: what comes before and after the text must be the same, byte for byte, so that nothing but text can be in it: an
event that brings anything else ends the run, and is its caller's to decode. A text that is not one JSON string, or that
holds the end of one event and the beginning of another of another kind, gives nothing at all.
"""

from __future__ import annotations

from typing import Final

import msgspec

DATA = b"data: "
NEXT = b"\n\ndata: "
CONTENT = b'"content":'
_strings = msgspec.json.Decoder(list[str]).decode
_string = msgspec.json.Decoder(str).decode
NOTHING: Final = (0, "")


class Alike:
    """The bytes around the text, as one engine writes them in one reply."""

    __slots__ = ("_between", "_first", "_last")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._first = DATA + before
        self._last = after + b"\n\n"
        self._between = self._last + self._first

    @classmethod
    def of(cls, event: bytes, content: str) -> Alike | None:
        """From the data of one event whose text is known; None where its text does not stand in it just once."""
        if event.count(CONTENT) != 1 or b'"' not in event[event.index(CONTENT) + len(CONTENT) :]:
            return None
        begin = event.index(b'"', event.index(CONTENT) + len(CONTENT)) + 1
        end = event.find(b'"', begin)
        while (
            end > 0 and event[end - 1] == 0x5C
        ):  # an escaped quote, or one after an escaped backslash: not this one
            end = event.find(b'"', end + 1)
        try:
            if end < 0 or _string(event[begin - 1 : end + 1]) != content:
                return None
        except (msgspec.DecodeError, UnicodeError):
            return None
        return cls(event[:begin], event[end:])

    def text(self, data: bytes) -> tuple[int, str]:
        """So many bytes of `data` are whole events of this kind, and this is their text."""
        first = self._first
        end = data.rfind(self._last)
        if end < len(first) or not data.startswith(first):
            return NOTHING
        head, tail = len(first) - len(DATA), 2 - len(self._last)
        pieces = [event[head:tail] for event in data[len(DATA) : end - tail].split(NEXT)]
        # what was cut off unseen is all alike if these texts, put between it, are what came: copying costs less than
        # looking for it
        if first + self._between.join(pieces) != data[:end]:
            return NOTHING
        try:
            # the quotes between them are ours: were one of theirs, there would be more of them, or fewer
            texts = _strings(b'["%b"]' % b'","'.join(pieces))
        except (msgspec.DecodeError, UnicodeError):
            return NOTHING
        if len(texts) != len(pieces):
            return NOTHING
        return end + len(self._last), "".join(texts)
