"""Bodies on their way in: how much memory all of them may take, and the long ones that are read where they will stay.

Rule: memory follows what was sent. Room is made for at most eight times what has come, whatever length was declared,
and every byte of room counts. Of HTTP this knows nothing but a body's length.
"""

from __future__ import annotations

import io

STRAIGHT_BYTES_MIN = 64 * 1024  # of a body that is yet to come, when it is read past the parser
CAME_BYTES_MIN = 8 * 1024  # of it before that
ROOM_OF_CAME = 8


class Arriving:
    """Bodies that are not whole yet, of all connections together: nobody knows yet whether their senders have keys."""

    __slots__ = ("bytes", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max


class Inflow:
    """A body of declared length: its socket writes into the bytes object that it becomes, which is never copied."""

    __slots__ = ("_came", "_length", "_sink", "size")

    def __init__(self, length: int, parts: list[bytes]) -> None:
        self._length = length
        self._sink = io.BytesIO()
        self._sink.writelines(parts)
        self._came = self._sink.tell()
        self.size = min(length, ROOM_OF_CAME * self._came)  # of the memory it takes

    def room(self) -> memoryview:
        """Where the next bytes go. Whoever fills it lets go of it before it asks for more."""
        sink = self._sink
        if sink.tell() < self.size:  # it stands at its end
            sink.seek(self.size - 1)
            sink.write(b"\0")
        return sink.getbuffer()[self._came :]

    def add(self, count: int) -> int:
        """So many bytes came; how many more than before are to be held for those yet to come."""
        self._came += count
        if self._came < self.size:
            return 0
        before, self.size = self.size, min(self._length, ROOM_OF_CAME * self._came)
        return self.size - before

    @property
    def complete(self) -> bool:
        """Has all of it come?"""
        return self._came == self._length

    def whole(self) -> bytes:
        """The body; once nobody fills its room any more it is not copied for this."""
        return self._sink.getvalue()
