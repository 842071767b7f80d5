"""What a request's messages say: their items, the system texts before them, and their words for whoever asks.

Rule: items are all that most calls are decided by. The messages themselves are kept no longer than their request is
held anyway, and are read from its bytes again where somebody asks for words after they were let go of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from agentserve.core.identity.evidence import Item
from agentserve.live.wire.canon import SYSTEM_ROLES, text_of
from agentserve.live.wire.prints import prints_of, told_of

_decode = msgspec.json.Decoder().decode


class Conversation:
    """The messages of one request."""

    __slots__ = ("_messages", "_protocol", "_raw", "items", "systems")

    def __init__(
        self,
        protocol: str,
        items: Sequence[Item],
        systems: Sequence[str],
        messages: list[Any] | None,
        raw: bytes | None = None,
    ) -> None:
        self.items = items  # those that count, in order
        self.systems = systems  # texts of the system messages that stand before all others
        self._protocol = protocol
        self._messages = messages
        self._raw = raw  # the body that they stand in

    def forget(self) -> None:
        """Keep nothing that the body's bytes hold too."""
        if self._raw is not None:
            self._messages = None

    def prints(self) -> frozenset[int]:
        """Fingerprints of what the users wrote."""
        return prints_of(_user_texts(self._read()))

    def told(self) -> bytes:
        """What users wrote before the assistant spoke. Later a reply seldom repeats it, and to find that would cost
        the more, the longer a conversation is."""
        if self._messages is None and any(item.role == "assistant" for item in self.items):
            return b""  # and nothing need be read again to know it
        messages = self._read()
        spoken = any(isinstance(m, dict) and m.get("role") == "assistant" for m in messages)
        return b"" if spoken else told_of(_user_texts(messages))

    def _read(self) -> list[Any]:
        if self._messages is not None or self._raw is None:
            return self._messages or []
        return messages_of(self._protocol, _decode(self._raw))


def messages_of(protocol: str, body: Mapping[str, Any]) -> list[Any]:
    """The messages of a body, whatever its protocol calls them."""
    if protocol == "responses":
        given = body.get("input")
        return [{"role": "user", "content": given}] if isinstance(given, str) else listed(given)
    return listed(body.get("messages"))


def listed(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def systems_of(messages: Sequence[Any]) -> list[str]:
    """What the model is told before the conversation; later system messages are no part of the role."""
    texts = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in SYSTEM_ROLES:
            break
        content = message.get("content")
        texts.append(content if isinstance(content, str) else text_of(content))
    return texts


def _user_texts(messages: list[Any]) -> Iterator[str]:
    """What users wrote, part by part: where a parent's argument or another step's reply would be found."""
    for message in messages:
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            text = text_of([part]) if isinstance(part, dict) else part
            if isinstance(text, str) and text:
                yield text
