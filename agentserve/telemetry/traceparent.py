"""W3C `traceparent`, read; and ids that are derived instead of drawn.

Rule: pure functions. Whatever a client sends is either a well-formed caller or none at all.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple


class Caller(NamedTuple):
    """A W3C `traceparent`."""

    trace_id: int
    span_id: int
    sampled: bool


def parse_traceparent(text: str | None) -> Caller | None:
    """The caller's span, or None where the header is absent or malformed."""
    if text is None or len(text) < 55 or text[2] != "-" or text[35] != "-" or text[52] != "-":
        return None
    try:
        trace_id, span_id, flags = int(text[3:35], 16), int(text[36:52], 16), int(text[53:55], 16)
    except ValueError:
        return None
    if not trace_id or not span_id or text[:2] == "ff":
        return None
    return Caller(trace_id, span_id, bool(flags & 1))


def derived(what: str, name: str, size: int) -> int:
    """An id that every gateway derives alike; never zero."""
    return int.from_bytes(blake2b(name.encode(), digest_size=size, person=what.encode()).digest(), "big") or 1
