"""Addresses and keys as they are typed, checked before anything is asked.

Rule: what cannot be one is the command's fault, and is said in one line. Whether somebody answers is not looked at.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from agentserve.errors import UsageError


def base_url(given: str, flag: str, *, like: str = "http://host:port") -> str:
    """`given` without a trailing slash or `/v1`, so that paths can be put behind it."""
    try:
        parts = urlsplit(given)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is none
        sound = False
    if not sound or not given.isprintable() or " " in given:
        raise UsageError(f"{flag} is {given!r}", remedy=f"write it as {like}")
    return given.rstrip("/").removesuffix("/v1").rstrip("/")


def bearer(key: str | None, flag: str) -> dict[str, str]:
    """The header that shows the key."""
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"{flag} has characters that cannot be sent",
            remedy="is there a line break in it, or text for a key?",
        )
    return {"authorization": f"Bearer {key}"}
