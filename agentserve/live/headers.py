"""Which headers travel on, in both directions.

Rule: hop-by-hop headers (those that `Connection` names included), credentials, and control headers (`x-agentserve-…`)
end here. Everything else of the client reaches the engine, and everything else of the engine reaches the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain

CONTROL_PREFIX = b"x-agentserve-"
NAMES_REMEMBERED = 1_024

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The client's own credentials are for this gateway. `accept-encoding`: replies are read as they pass, so they come
# uncompressed. `host`, `content-length` and `expect` belong to each hop.
NOT_FORWARDED = HOP_BY_HOP | {
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"cookie",
    b"host",
    b"content-length",
    b"expect",
    b"accept-encoding",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
}
# The engine's own framing and server identity; `date` and `server` are written by whoever answers.
NOT_RETURNED = HOP_BY_HOP | {b"content-length", b"set-cookie", b"date", b"server"}


def named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that the `Connection` header declares hop-by-hop."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return frozenset(part.strip().lower() for part in value.split(b","))
    return frozenset()


def texts_of(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names and values as text; of a repeated header the first counts."""
    parts = b"\n".join(chain.from_iterable(headers)).decode("latin-1").split("\n")
    texts = dict(zip(parts[::2], parts[1::2], strict=False))
    if len(texts) == len(headers) and len(parts) == 2 * len(headers):
        return texts
    # one stands twice, or holds a line break
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(headers)}


def forwarded(headers: Sequence[tuple[bytes, bytes]], texts: Mapping[str, str]) -> dict[str, str]:
    """The client's headers that an engine may see; `texts` are theirs. A repeated one is joined by commas, as HTTP
    allows."""
    if len(texts) == len(headers) and texts.get("connection", "close") in ("close", "keep-alive"):
        return {name: text for name, text in texts.items() if _goes_on(name)}
    named = named_by_connection(headers)
    kept: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        if name not in named and _goes_on(key):
            kept[key] = f"{kept[key]}, {text}" if key in kept else text
    return kept


@lru_cache(NAMES_REMEMBERED)
def _goes_on(name: str) -> bool:
    """May an engine see a header of this name?"""
    sent = name.encode("latin-1")
    return sent not in NOT_FORWARDED and not sent.startswith(CONTROL_PREFIX)


def returned(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The engine's headers that a client may see. The length is the caller's to add: it may have changed."""
    named = named_by_connection(headers)
    return [pair for pair in headers if _comes_back(pair[0]) and pair[0] not in named]


@lru_cache(NAMES_REMEMBERED)
def _comes_back(name: bytes) -> bool:
    """May a client see a header of this name?"""
    return name not in NOT_RETURNED and not name.startswith(CONTROL_PREFIX)


def content_length(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The length that a message declares."""
    for name, value in headers:
        if name == b"content-length":
            return value
    return None
