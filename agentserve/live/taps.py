"""What may stand between an engine's reply and the client: the usage filter, translations, the responses store.

Rule: a tap sees every byte once, in order. Where nothing has to change there is no tap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agentserve.live.splice import UsageFilter


class Tap(Protocol):
    """Bytes in, bytes out."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for this chunk; may be nothing yet."""
        ...

    def finish(self) -> bytes:
        """What is left when the reply has ended."""
        ...


class Chained:
    """One tap after the other."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Tap, second: Tap) -> None:
        self._first = first
        self._second = second

    def feed(self, chunk: bytes) -> bytes:
        return self._second.feed(self._first.feed(chunk))

    def finish(self) -> bytes:
        last = self._first.finish()
        return (self._second.feed(last) if last else b"") + self._second.finish()


class Taps:
    """Which taps a reply needs; made once it is known whether it is streamed."""

    __slots__ = ("filters_usage", "keeps", "translated")

    def __init__(self) -> None:
        self.filters_usage = False
        self.translated: Callable[..., Tap] | None = None
        self.keeps: Callable[..., Tap | None] | None = None

    @property
    def plain(self) -> bool:
        """Nothing but the usage filter, which any process can put in."""
        return self.translated is None and self.keeps is None

    def chain(self, *, streamed: bool) -> Tap | None:
        """All of them as one, or none."""
        first: Tap | None = None
        if self.filters_usage and streamed:
            first = UsageFilter()
        elif self.translated is not None:
            first = self.translated(streamed=streamed)
        second = self.keeps(streamed=streamed) if self.keeps is not None else None
        if first is None or second is None:
            return first if second is None else second
        return Chained(first, second)
