"""One end of the socket pair between a worker and the scheduler's process.

Rule: frames in order, nothing else. Whoever holds an end is told of each frame that comes and, once, of its end; what
is sent into an end that is lost is dropped, since its requests are lost with it. What is no frame ends the link: what
comes after it could not be told apart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from agentserve.live.workers.frames import Frame, Unframer, framed

log = logging.getLogger("agentserve.workers")

WRITE_HIGH_BYTES = 4 * 1024 * 1024


class Link(asyncio.Protocol):
    """An end."""

    def __init__(self, kinds: object, *, heard: Callable[[Frame], None], lost: Callable[[], None]) -> None:
        self._unframer = Unframer(kinds)
        self._heard = heard
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()

    @property
    def open(self) -> bool:
        """Is the other end there?"""
        return self._transport is not None

    def send(self, frame: Frame) -> None:
        """Say it."""
        if self._transport is not None:
            self._transport.write(framed(frame))

    async def room(self) -> None:
        """Wait while the other end is behind in reading."""
        await self._room.wait()

    def close(self) -> None:
        """No more."""
        if self._transport is not None:
            self._transport.close()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._unframer.feed(data)
        except ValueError as error:  # what msgspec raises too
            log.error("a link between this gateway's processes is broken: %s", error)
            if self._transport is not None:
                self._transport.abort()
            return
        for frame in frames:
            self._heard(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._room.set()
        self._lost()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()
