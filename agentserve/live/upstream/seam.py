"""The seam between the relay and an engine's transport.

Rule: bytes pass as they are; a transport knows HTTP framing and nothing of inference. It raises `EngineUnreachable`,
`EngineTimeout` or `EngineBroke`, never an exception of the library that it happens to use. A reply that was not read
to its end is closed upstream at once, so that the engine stops generating.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

RawHeaders = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each part of one exchange may take."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    overall_s: float = 3600.0


class UpstreamReply(Protocol):
    """A reply whose head has come. Used by one task."""

    status: int
    headers: list[tuple[bytes, bytes]]  # names in lower case, in the order in which they came

    @property
    def done(self) -> bool:
        """Has everything been handed out? Then `read` need not be called again."""
        ...

    async def read(self) -> bytes:
        """The bytes that have come since the last call, at least one; empty only at the end of the reply."""
        ...

    def close(self) -> None:
        """Finished with it. A connection is kept only after a whole reply; otherwise it is closed at once."""
        ...


class Upstream(Protocol):
    """A way to one engine."""

    async def send(
        self, method: str, path: str, headers: RawHeaders, body: bytes, *, deadlines: Deadlines
    ) -> UpstreamReply:
        """Send the request and wait for the head of the reply. Cancelling closes the connection."""
        ...

    async def stop(self) -> None:
        """Close every connection."""
        ...
