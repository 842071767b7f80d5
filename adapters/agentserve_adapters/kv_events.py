"""KV events of an engine: decoding both encodings, and finding gaps and restarts by sequence number.

Rule: no sockets here. `decode` turns one payload into levelled `KvChange`s; `Sequence` says of each
message whether it is next, came too soon, was seen, or belongs to another run of the engine. What cannot
be known is forgotten: a gap that cannot be refilled is a "cleared".

Frames are `[topic, sequence as 8 bytes big-endian, msgpack [time, events, rank]]`. Engines of 2026 write
events as tagged maps, older ones as arrays; hashes are unsigned, signed or digests in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from agentserve.ports import KvChange

HASH_MASK = (1 << 64) - 1
END_OF_REPLAY = (1 << 64) - 1  # −1 as an unsigned number
# Blocks of these layers cover the whole prefix; those of windowed or recurrent layers leave early.
WHOLE_PREFIX_KINDS = frozenset({"full_attention", "mla_attention", "sink_full_attention"})

_decoder = msgspec.msgpack.Decoder()

# Positions in the array encoding: type, then these.
_STORED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")
_REMOVED = ("block_hashes", "medium")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One message of an engine."""

    at: float
    changes: tuple[KvChange, ...]
    rank: int | None = None


class MalformedEvents(ValueError):
    """A payload is not a batch of KV events."""


def decode(payload: bytes) -> Batch:
    """One payload, of either encoding."""
    try:
        found = _decoder.decode(payload)
        at, events = float(found[0]), found[1]
        rank = found[2] if len(found) > 2 and isinstance(found[2], int) else None
        changes = tuple(change for event in events if (change := _change(_as_map(event))) is not None)
    except (msgspec.DecodeError, TypeError, ValueError, IndexError, KeyError) as exc:
        raise MalformedEvents(f"not a batch of KV events: {exc}") from exc
    return Batch(at=at, changes=changes, rank=rank)


def _as_map(event: Any) -> dict[str, Any]:
    if isinstance(event, dict):
        return event
    tag, *values = event
    names = {"BlockStored": _STORED, "BlockRemoved": _REMOVED}.get(tag, ())
    return {"type": tag, **dict(zip(names, values, strict=False))}


def _change(event: dict[str, Any]) -> KvChange | None:
    tag = event["type"]
    if tag == "AllBlocksCleared":
        return KvChange(kind="cleared")
    if tag not in ("BlockStored", "BlockRemoved"):
        return None  # a kind that a later version brought
    if _partial_layer(event):
        return None
    hashes = tuple(level_hash(h) for h in event["block_hashes"])
    medium = event.get("medium") or "GPU"
    if tag == "BlockRemoved":
        return KvChange(kind="removed", hashes=hashes, medium=medium)
    parent = event.get("parent_block_hash")
    return KvChange(
        kind="stored",
        hashes=hashes,
        parent=None if parent is None else level_hash(parent),
        token_ids=tuple(event.get("token_ids") or ()),
        block_tokens=int(event.get("block_size") or 0),
        medium=medium,
        session=event.get("session_id"),
    )


def _partial_layer(event: dict[str, Any]) -> bool:
    """Hybrid models report each group of layers; only one that sees the whole prefix tells of prefixes."""
    kind = event.get("kv_cache_spec_kind")
    if kind is not None:
        return kind not in WHOLE_PREFIX_KINDS
    return False


def level_hash(value: int | bytes) -> int:
    """A block hash as an unsigned 64-bit number, whatever the engine writes."""
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big")
    return value & HASH_MASK


class Verdict(Enum):
    """Where a message stands in its publisher's sequence."""

    NEXT = "next"
    GAP = "gap"
    SEEN = "seen"
    RESTART = "restart"


class Sequence:
    """The sequence of one publisher. After a broken connection the first message decides: same run or not."""

    def __init__(self) -> None:
        self.expected = 0
        self._last_at: float | None = None
        self._doubtful = False

    def judge(self, number: int, at: float) -> Verdict:
        """Where this message stands; nothing is taken in yet."""
        if number == self.expected:
            # A run that began anew and has caught up with the old count looks like this one, but for time:
            # nothing else can be told from numbers alone, which is why a broken connection is doubtful.
            return Verdict.GAP if self._doubtful and number > 0 else Verdict.NEXT
        if number > self.expected:
            return Verdict.GAP
        if self._last_at is not None and at > self._last_at:
            return Verdict.RESTART  # an old number with a newer time
        return Verdict.SEEN

    def accept(self, number: int, at: float) -> None:
        """This message was applied."""
        self.expected = number + 1
        self._last_at = at
        self._doubtful = False

    def continues(self, number: int, at: float) -> bool:
        """Is this replayed message the very one that was accepted last?"""
        return number == self.expected - 1 and at == self._last_at

    def doubt(self) -> None:
        """The connection broke: what comes next may be another run."""
        self._doubtful = self.expected > 0

    def trust(self) -> None:
        """A replay has shown that it is the same run."""
        self._doubtful = False

    def begin_anew(self) -> None:
        self.expected = 0
        self._last_at = None
        self._doubtful = False
