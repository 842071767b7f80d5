"""The counts behind a learned graph, and how they are kept, faded and added up.

Rule: plain numbers in units of one observation (the graph knows how much a unit is worth now); bounded in number.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

EDGES_OF_NODE_MAX = 64
PREFIX_PARTS_MAX = 8
RECORD_VERSION = 1


class EdgeRecord(msgspec.Struct, array_like=True):
    """Arrivals over one edge, in units."""

    count: float = 0.0  # an arrival at a join is shared among the branches that it waited for
    arrivals: float = 0.0  # here each of them counts in full
    gap_s: float = 0.0  # sum
    gaps: float = 0.0  # of how many


class NodeRecord(msgspec.Struct, array_like=True):
    """What was seen of one node, in units."""

    visits: float = 0.0
    departures: float = 0.0  # visits of which it is known what followed
    ends: float = 0.0
    output_tokens: float = 0.0
    context_tokens: float = 0.0
    seconds: float = 0.0
    edges: dict[str, EdgeRecord] = {}
    prefix: list[tuple[int, int]] = []
    prefix_seen: int = 0


class GraphRecord(msgspec.Struct, array_like=True):
    """A learned graph, as it is kept."""

    version: int
    unit: float
    programs: float
    nodes: dict[str, NodeRecord]
    starts: dict[str, float]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(GraphRecord).decode


def to_bytes(record: GraphRecord) -> bytes:
    """The record, to be kept."""
    return _encode(record)


def from_bytes(kept: bytes) -> GraphRecord | None:
    """What `to_bytes` gave; None when it is damaged or of another version."""
    try:
        record = _decode(kept)
    except msgspec.DecodeError:
        return None
    return record if record.version == RECORD_VERSION else None


def copied(record: NodeRecord) -> NodeRecord:
    """A copy that shares nothing."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=NodeRecord)


def share_prefix(record: NodeRecord, prefix: Sequence[tuple[int, int]]) -> None:
    """Keep only what all calls of the node begin with."""
    seen = [(part[0], part[1]) for part in prefix[:PREFIX_PARTS_MAX]]
    if record.prefix_seen == 0:
        record.prefix = seen
    else:
        same = 0
        while same < min(len(seen), len(record.prefix)) and seen[same][0] == record.prefix[same][0]:
            same += 1
        if same == 0 and seen:  # the prompt was changed: begin again
            record.prefix, record.prefix_seen = seen, 0
        else:
            record.prefix = record.prefix[:same]
    record.prefix_seen = min(record.prefix_seen + 1, 1_000)


def scale(record: NodeRecord, factor: float) -> None:
    """Make all counts this many times as large."""
    for name in ("visits", "departures", "ends", "output_tokens", "context_tokens", "seconds"):
        setattr(record, name, getattr(record, name) * factor)
    for edge in record.edges.values():
        edge.count *= factor
        edge.arrivals *= factor
        edge.gap_s *= factor
        edge.gaps *= factor


def add(mine: NodeRecord, theirs: NodeRecord) -> None:
    """Add their counts to mine."""
    for name in ("visits", "departures", "ends", "output_tokens", "context_tokens", "seconds"):
        setattr(mine, name, getattr(mine, name) + getattr(theirs, name))
    for node, edge in theirs.edges.items():
        own = mine.edges.get(node)
        if own is None:
            if len(mine.edges) < EDGES_OF_NODE_MAX:
                mine.edges[node] = edge
            continue
        own.count += edge.count
        own.arrivals += edge.arrivals
        own.gap_s += edge.gap_s
        own.gaps += edge.gaps
    if theirs.prefix_seen:
        share_prefix(mine, theirs.prefix)
