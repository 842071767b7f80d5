"""Server-sent events out of a byte stream that may be cut anywhere.

Rule: bytes in, the data of whole events out; never an error, never more memory than one event's bound. Multi-byte
characters need no care, because a line is cut only at its end. An event that is too long is dropped and counted.
"""

from __future__ import annotations

EVENT_BYTES_MAX = 8 * 1024 * 1024


class SseSplitter:
    """Feed bytes, take the `data` of each event that they complete."""

    __slots__ = ("_bytes", "_data", "_data_bytes", "_most", "_rest", "dropped")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._most = event_bytes_max
        self.dropped = 0
        self._rest: list[bytes] = []  # of a line that has no end yet
        self._bytes = 0
        self._data: list[bytes] = []  # lines of an event that has no end yet
        self._data_bytes = 0

    @property
    def empty(self) -> bool:
        """Does an event begin with what is fed next?"""
        return not (self._rest or self._data)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that this chunk ends, in order."""
        if chunk[:6] == b"data: " and not (self._rest or self._data or b"\r" in chunk):
            plain = self._plain(chunk)
            if plain is not None:
                return plain
        if b"\n" not in chunk and b"\r" not in chunk:
            self._keep(chunk)
            return []
        if self._rest:
            self._rest.append(chunk)
            chunk = b"".join(self._rest)
            self._rest.clear()
            self._bytes = 0
        if b"\r" in chunk:
            if chunk.endswith(b"\r"):  # its \n may be yet to come
                chunk, held = chunk[:-1], b"\r"
            else:
                held = b""
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        else:
            held = b""
        lines = chunk.split(b"\n")
        self._keep(lines.pop() + held)
        found: list[bytes] = []
        for line in lines:
            if line[:5] == b"data:":
                self._data_bytes += len(line)
                if self._data_bytes > self._most:
                    self.dropped += bool(self._data)
                    self._data.clear()
                else:
                    self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line:
                if self._data:
                    found.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                    self._data.clear()
                self._data_bytes = 0
        return found

    def _plain(self, chunk: bytes) -> list[bytes] | None:
        """The events of a chunk that holds nothing but one `data: ` line in each, split at once; None if it does not.

        Every event of that kind brings two line ends: were there anything else, there would be more of them.
        """
        end = chunk.rfind(b"\n\n")
        if end < 0 or end > self._most:
            return None
        found = chunk[6:end].split(b"\n\ndata: ")
        if chunk.count(b"\n", 0, end + 2) != 2 * len(found):
            return None
        rest = chunk[end + 2 :]
        return found + self.feed(rest) if rest else found

    def finish(self) -> list[bytes]:
        """The event that the end of the stream cut short, if its line was whole enough to keep."""
        return [*self.feed(b"\n\n"), *self.feed(b"\n")] if self._rest or self._data else []

    def _keep(self, rest: bytes) -> None:
        if not rest:
            return
        self._bytes += len(rest)
        if self._bytes > self._most:
            self._rest.clear()
            self._bytes = 0
            self.dropped += 1
            return
        self._rest.append(rest)
