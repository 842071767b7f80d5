"""The process's one connection to the gateway: settings, and where events go.

Rule: `init` is the only reader of the environment besides the program's id, and may be called again; what was told
before goes where it was meant to go. Every way in catches its own faults.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, Iterable, NamedTuple, Optional, Tuple, Union

if TYPE_CHECKING:
    from agentserve_sdk._post import Poster

URL_DEFAULT = "http://127.0.0.1:8400"
FLUSH_S = 1.0
PORTS = {"http": 80, "https": 443}

Origin = Tuple[str, str, int]


class _Log:
    """The logger `agentserve_sdk`, loaded when there is something to say: `logging` is half of the import's time."""

    def __getattr__(self, name: str) -> Any:
        import logging

        return getattr(logging.getLogger("agentserve_sdk"), name)


log = _Log()


class Settings(NamedTuple):
    """What `init` found."""

    url: str = URL_DEFAULT
    key: Optional[str] = None
    enabled: bool = False
    origin: Optional[Origin] = None


class _State:
    settings = Settings()
    poster: Optional[Poster] = None


def init(
    url: Optional[str] = None,
    *,
    api_key: Optional[str] = None,
    propagate: bool = True,
    integrations: Union[bool, Iterable[str]] = True,
) -> None:
    """Point the SDK at a gateway. Never raises.

    `url` is the gateway's address (else `AGENTSERVE_URL`, else `http://127.0.0.1:8400`); `api_key` its key (else
    `AGENTSERVE_API_KEY`). `propagate` lets HTTP clients carry the program's headers to that address, and to no other.
    `integrations` are the frameworks to hook into once they are imported: all known ones, none, or those named.
    `AGENTSERVE_DISABLED=1` makes all of the SDK do nothing.
    """
    try:
        _init(url, api_key, propagate, integrations)
    except Exception:
        log.warning("agentserve could not be set up; the application runs without it", exc_info=True)


def _init(
    url: Optional[str], key: Optional[str], propagate: bool, integrations: Union[bool, Iterable[str]]
) -> None:
    shutdown(timeout_s=0.0)
    if os.environ.get("AGENTSERVE_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
        return
    address = (url or os.environ.get("AGENTSERVE_URL") or URL_DEFAULT).rstrip("/")
    if address.endswith("/v1"):
        address = address[: -len("/v1")]
    origin = origin_of(address)
    if origin is None:
        log.warning("agentserve is off: %r is not an http:// or https:// address", address)
        return
    from agentserve_sdk._post import Poster

    key = key or os.environ.get("AGENTSERVE_API_KEY") or None
    _State.poster = Poster(address, key)
    _State.settings = Settings(address, key, True, origin)
    if propagate:
        from agentserve_sdk import _propagate

        _propagate.install()
    if integrations:
        from agentserve_sdk import _integrations

        _integrations.install(None if integrations is True else integrations)


def settings() -> Settings:
    """What is in force."""
    return _State.settings


def enabled() -> bool:
    """Is there a gateway to talk to?"""
    return _State.settings.enabled


def tell(program_id: str, event: Dict[str, object]) -> None:
    """Send an event of a program, later and perhaps never; returns at once."""
    poster = _State.poster
    if poster is not None:
        poster.put(program_id, event)


def send(method: str, path: str, body: Dict[str, object]) -> None:
    """Send a request, later and perhaps never; returns at once."""
    poster = _State.poster
    if poster is not None:
        poster.request(method, path, body)


def flush(timeout_s: float = FLUSH_S) -> bool:
    """Wait until all that was told has been sent, or for so long. For the end of short programs and for tests."""
    poster = _State.poster
    return poster is None or poster.flush(timeout_s)


def shutdown(timeout_s: float = FLUSH_S) -> None:
    """Flush, then do nothing until the next `init`."""
    poster, _State.poster = _State.poster, None
    _State.settings = Settings()
    if poster is not None:
        poster.close(timeout_s)


def stats() -> Dict[str, int]:
    """How many events were sent, and how many were given up because the gateway was away or slow."""
    poster = _State.poster
    if poster is None:
        return {"sent": 0, "dropped": 0, "failed": 0}
    return {"sent": poster.sent, "dropped": poster.dropped, "failed": poster.failed}


def origin_of(url: str) -> Optional[Origin]:
    """Scheme, host and port of an address."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or PORTS[parts.scheme]
