"""What a call shows of itself: the facts that the resolver decides from.

Rule: hashes, counts, names and ids, never a prompt's text. Whoever reads the wire makes these; nothing here knows
a protocol.

A conversation is a chain of 61-bit digests: the hash after item i is `chain * BASE + digest (mod PRIME)`, begun
from a seed that belongs to the tenant. A chain of known items therefore costs one multiplication an item, and two
tenants that send the same words have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal

import msgspec

Role = Literal["user", "assistant", "tool", "text"]

PRIME = (1 << 61) - 1
BASE = 1_181_783_497_276_652_981


def digest_of(*parts: bytes) -> int:
    """A 61-bit digest of the parts; each is counted with its length, so that their borders matter."""
    pieces: list[bytes] = []
    for part in parts:
        pieces += (len(part).to_bytes(8, "little"), part)
    return int.from_bytes(blake2b(b"".join(pieces), digest_size=8).digest(), "little") % PRIME


def chain_of(seed: int, items: Sequence[Item]) -> list[int]:
    """The hash after each item, in order."""
    chain = []
    for item in items:
        seed = (seed * BASE + item.digest) % PRIME
        chain.append(seed)
    return chain


def recent_of(role: int, items: Sequence[Item], last: int) -> int:
    """A hash of the last item or the last two under one role."""
    told = role
    for item in items[-last:]:
        told = (told * BASE + item.digest) % PRIME
    return told


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One canonical message. System messages are no items: they belong to the role, not to the conversation."""

    role: Role
    digest: int
    size: int = 0  # characters, for an estimate of tokens
    calls: tuple[str, ...] = ()  # ids of the tool calls that an assistant item asks for
    returns: tuple[str, ...] = ()  # ids of the tool calls whose results it brings
    observation: bool = False  # a tool's result told as a user's text


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Fingerprints of one text, to find it again inside another without keeping either."""

    whole: int
    windows: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()  # of a text of several: a later prompt of the same role may hold one of them
    paragraphs: int = 0  # so many of the lines, the first, are long enough for a prompt of any role
    short: bool = False  # of a sentence or two: only all of its windows together tell anything

    def inside(self, prints: frozenset[int]) -> bool:
        """Is the whole text contained in the one with these prints?"""
        return self.whole in prints or (len(self.windows) >= 2 and all(w in prints for w in self.windows))


def no_trace() -> None:
    """The trace of a text that is too short to tell."""


def no_prints() -> frozenset[int]:
    """The prints of an empty text."""
    return frozenset()


class CallEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A request, as the resolver sees it."""

    headers: Mapping[str, str] = msgspec.field(default_factory=dict)  # names in lower case; some are secret
    # ids found in the body, by dotted path; `path` for the URL
    named: Mapping[str, str] = msgspec.field(default_factory=dict)
    items: Sequence[Item] = ()
    role: int = 0  # fingerprint of the masked system text and the tools' names
    system: int = 0  # the same without the tools
    system_size: int = 0  # characters of the system text
    tools_offered: int = 0
    person: int = 0  # digest of `user` or `safety_identifier`: who asks, never which program
    conversational: bool = True  # False for embeddings
    # Fingerprints of what the users wrote; made only when somebody asks, which is seldom.
    prints: Callable[[], frozenset[int]] = no_prints

    def __repr__(self) -> str:
        """Without the headers."""
        return f"CallEvidence(named={self.named!r}, items={self.items!r}, role={self.role})"


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call in a reply. `traces` are of its longer string arguments: a sub-agent may open with one."""

    id: str
    name: str
    traces: tuple[Trace, ...] = ()


class ReplyEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A reply, as the resolver sees it."""

    items: Sequence[Item] = ()  # what the client will send back as its next request's assistant part
    tools: tuple[ToolUse, ...] = ()
    response_id: str | None = None
    finish: str = ""  # stop, length, tool_calls, or whatever else the engine said
    trace: Callable[[], Trace | None] = no_trace  # of the reply's own text; made only when it is to be kept
    whole: bool = True  # False when the stream broke off
