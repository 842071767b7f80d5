"""What the translations share: the way chat replies are read, whole or streamed, and the tap that writes others.

Rule: tolerant of what engines send; a chunk that cannot be read is skipped, and a reply that is no chat reply (an
error) becomes an error of the client's protocol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import msgspec

from agentserve.errors import BadRequest
from agentserve.live import shapes
from agentserve.live.wire import SseSplitter

Json = dict[str, Any]
REPLY_BYTES_MAX = 32 * 1024 * 1024
CUT = "the engine's stream ended before its reply did"

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder().decode


def refuse(what: str, field: str) -> BadRequest:
    """This cannot be said in chat completions."""
    return BadRequest(
        f"the engine serves chat completions only, which cannot express {what}",
        field=field,
        remedy="leave it out, or use an engine that speaks this protocol",
    )


class Translation(ABC):
    """One request said in chat, and how its reply is said back."""

    path = "/v1/chat/completions"
    protocol: str
    body: Json

    @abstractmethod
    def reply(self, chat: Json) -> Json:
        """A whole chat completion in the client's protocol."""

    @abstractmethod
    def writer(self) -> Writer:
        """Something that turns chat chunks into the client's events."""

    def tap(self, *, streamed: bool) -> WholeTap | StreamTap:
        """What stands between the engine's reply and the client."""
        return StreamTap(self.protocol, self.writer()) if streamed else WholeTap(self)


class Writer(ABC):
    """Writes one stream of events."""

    finished = False  # the engine said why its model stopped: nothing is missing

    @abstractmethod
    def chunk(self, chunk: Json) -> Iterator[bytes]:
        """The events that a chat chunk becomes."""

    @abstractmethod
    def end(self) -> Iterator[bytes]:
        """The events that close the stream."""


class WholeTap:
    """Collects a reply and turns it round at its end."""

    def __init__(self, made: Translation) -> None:
        self._made = made
        self._parts: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Nothing until the end."""
        self._bytes += len(chunk)
        if self._bytes <= REPLY_BYTES_MAX:
            self._parts.append(chunk)
        return b""

    def finish(self) -> bytes:
        """The whole reply."""
        raw = b"".join(self._parts)
        try:
            chat = _decode(raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return raw
        if not isinstance(chat, dict):
            return raw
        if "choices" not in chat:
            return _encode(error_of(self._made.protocol, chat))
        return _encode(self._made.reply(chat))


class StreamTap:
    """Turns a stream round event by event."""

    def __init__(self, protocol: str, writer: Writer) -> None:
        self._protocol = protocol
        self._writer = writer
        self._splitter = SseSplitter()
        self._over = False

    def feed(self, chunk: bytes) -> bytes:
        """The client's events for these bytes."""
        return b"".join([piece for data in self._splitter.feed(chunk) for piece in self._event(data)])

    def finish(self) -> bytes:
        """The end of the client's stream, where the engine's had none."""
        out = [piece for data in self._splitter.finish() for piece in self._event(data)]
        if not self._over:
            self._over = True
            out += (
                self._writer.end() if self._writer.finished else [self._error({"message": CUT, "code": 502})]
            )
        return b"".join(out)

    def _event(self, data: bytes) -> Iterator[bytes]:
        if self._over:
            return
        if data == b"[DONE]":
            self._over = True
            yield from self._writer.end()
            return
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        if not isinstance(chunk, dict):
            return
        if chunk.get("error") is not None:
            self._over = True
            yield self._error(chunk["error"])
            return
        if first_choice(chunk).get("finish_reason"):
            self._writer.finished = True
        yield from self._writer.chunk(chunk)

    def _error(self, error: Any) -> bytes:
        return event("error", stream_error_of(self._protocol, {"error": error}))


def event(name: str, value: Json) -> bytes:
    """One server-sent event with its name."""
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), _encode(value))


def error_of(protocol: str, chat: Json) -> Json:
    """An engine's error in the client's protocol."""
    error = chat.get("error", chat)
    error = error if isinstance(error, dict) else {"message": str(error)}
    code = error.get("code")
    status = code if isinstance(code, int) and not isinstance(code, bool) else 400
    return shapes.error_json(
        protocol,
        status,
        str(error.get("message", "the engine refused the request")),
        param=error.get("param"),
    )


def stream_error_of(protocol: str, chat: Json) -> Json:
    """The same as an event."""
    made = error_of(protocol, chat)
    if protocol == "messages":
        return made
    return {
        "type": "error",
        "code": None,
        "message": made["error"]["message"],
        "param": None,
        "sequence_number": 0,
    }


def first_choice(chat: Json) -> Json:
    """The choice that an agent goes on with."""
    choices = chat.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def as_dict(value: Any) -> Json:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A list, or an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """A text, or an empty one."""
    return value if isinstance(value, str) else ""


def as_count(value: Any) -> int:
    """A whole number, or zero."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def reasoning_of(message: Json) -> str:
    """What the model thought, by either of its names."""
    return as_text(message.get("reasoning")) or as_text(message.get("reasoning_content"))


def counts(usage: Any) -> tuple[int, int, int, int]:
    """Prompt, cached, output and reasoning tokens of a chat usage."""
    usage = as_dict(usage)
    return (
        as_count(usage.get("prompt_tokens")),
        as_count(as_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
        as_count(usage.get("completion_tokens")),
        as_count(as_dict(usage.get("completion_tokens_details")).get("reasoning_tokens")),
    )
