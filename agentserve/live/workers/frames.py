"""What a worker and the scheduler's process say to each other: values, and how they are framed.

Rule: nothing here acts. A request is known by the number that its worker gave it, an attempt to fetch its reply by its
turn, so that what was said of an earlier attempt is told from what is said of this one.
"""

from __future__ import annotations

import msgspec

from agentserve.errors import (
    AgentServeError,
    BadRequest,
    EngineBroke,
    EngineError,
    EngineTimeout,
    EngineUnreachable,
)
from agentserve.live.upstream import Deadlines
from agentserve.live.wire import Protocol, Reply

# A request that came through a worker has a function here: it takes an `Order` and lets the worker carry it out.
CARRIES = "agentserve.carries"
LENGTH_BYTES = 4
FRAME_BYTES_MAX = (
    1 << 30
)  # more is no frame: whoever is at the other end is not what it was, and is not waited for
KINDS: dict[str, type[AgentServeError]] = {
    kind.__name__: kind for kind in (EngineUnreachable, EngineTimeout, EngineBroke, BadRequest)
}
Headers = list[tuple[bytes, bytes]]
Address = tuple[str, int] | None


class Frame(msgspec.Struct, array_like=True, tag=True, frozen=True, kw_only=True):
    """Something said of one request."""

    request: int


# -- what a worker says


class Opened(Frame, frozen=True):
    """A client's request, whole."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    body: bytes
    client: Address = None
    server: Address = None


class NotTaken(Frame, frozen=True):
    """The listening side refused what a client sent; of no request, since it never was one."""

    status: int


class Left(Frame, frozen=True):
    """The client closed its connection before its answer was whole."""


class Took(Frame, frozen=True):
    """The piece is with the client, or on its way: the next may come."""


class Began(Frame, frozen=True):
    """A byte of the engine's reply is here."""

    turn: int


class Carried(Frame, frozen=True):
    """The reply went to the client, whole; or the engine wants to be left alone and the client got nothing."""

    turn: int
    status: int
    reply: Reply | None = None  # None when it could not be read, or need not be
    gave_way: bool = False

    def read(self) -> Reply:
        """What the reply said."""
        if self.reply is None:
            raise ValueError("the worker could not read the reply")
        return self.reply


class Broke(Frame, frozen=True):
    """The engine failed, before or after the first byte of its reply."""

    turn: int
    kind: str
    message: str
    remedy: str = ""
    ended: bool = False  # the client's stream could be ended in an orderly way

    def error(self) -> AgentServeError:
        """It, to be raised here."""
        return KINDS.get(self.kind, EngineError)(self.message, remedy=self.remedy)


# -- what the scheduler's process says


class Order(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """How to fetch a reply, and what the client gets of it."""

    url: str
    path: str
    headers: Headers
    payload: bytes | None  # None: the request's own body
    protocol: Protocol
    filters_usage: bool
    answer_headers: Headers  # added to the engine's
    deadlines: Deadlines
    may_give_way: bool  # a busy engine's refusal is not for the client: there are others


class Carry(Frame, frozen=True):
    """Fetch the reply and relay it."""

    turn: int
    order: Order


class Drop(Frame, frozen=True):
    """Stop carrying: the step goes elsewhere or is over."""

    turn: int


class Piece(Frame, frozen=True):
    """A piece of the answer, with its head where it is the first."""

    data: bytes
    more: bool
    status: int = 0
    headers: Headers = []


class Cut(Frame, frozen=True):
    """The answer cannot be completed: close the connection."""


class Level(Frame, frozen=True):
    """What is logged from now on; of no request."""

    level: int


class Ping(Frame, frozen=True):
    """Are you there? Said by one side, and said back by the other; of no request."""


FromWorker = Ping | NotTaken | Opened | Left | Took | Began | Carried | Broke
ToWorker = Ping | Level | Carry | Drop | Piece | Cut

_encode = msgspec.msgpack.Encoder().encode


def framed(frame: Frame) -> bytes:
    """The frame as it is sent."""
    payload = _encode(frame)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class Unframer:
    """Bytes as they come, frames as they are whole."""

    __slots__ = ("_decode", "_held")

    def __init__(self, kinds: object) -> None:
        self._held = bytearray()
        self._decode = msgspec.msgpack.Decoder(kinds).decode

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that end in these bytes."""
        held = self._held
        held += data
        frames: list[Frame] = []
        at = 0
        with memoryview(held) as view:
            while len(held) - at >= LENGTH_BYTES:
                start = at + LENGTH_BYTES
                length = int.from_bytes(view[at:start], "big")
                if length > FRAME_BYTES_MAX:
                    raise ValueError(f"a frame of {length} bytes")
                end = start + length
                if len(held) < end:
                    break
                frames.append(self._decode(view[start:end]))
                at = end
        del held[:at]
        return frames
