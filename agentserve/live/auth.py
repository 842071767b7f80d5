"""Who is calling: API keys, the tenant each stands for, and what it may do.

Rule: a request without a valid key goes nowhere, unless the gateway is open, which it is only on loopback or when
the operator insisted; and then a web page that somebody has open must not use it through their browser. Keys are
compared as SHA-256 digests in constant time and are never logged or forwarded.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from agentserve.errors import ConfigError, NotAuthorised

OPEN_TENANT = "default"
CALL = "call"
READ = "read"
ADMIN = "admin"
SCOPES = frozenset({CALL, READ, ADMIN})
KEY_CHARS_MAX = 512
NAMES_REMEMBERED = 256
LOCAL_NAMES = (".localhost", ".internal")  # by RFC 6761, and by ICANN for private use: `host.docker.internal`


class Principal(Protocol):
    """Whoever a key stands for."""

    @property
    def tenant(self) -> str: ...
    @property
    def scopes(self) -> frozenset[str]: ...
    @property
    def key_id(self) -> str:
        """The public part of the key, good for logs."""
        ...


class Keys(Protocol):
    """The keys that are valid now. Asked on every request: it must answer from memory."""

    def check(self, token: str, now: float) -> Principal | None:
        """Whom this key stands for; None when it is unknown, revoked or expired. `now` is epoch seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The plain principal."""

    tenant: str
    scopes: frozenset[str] = frozenset({CALL})
    key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedKey:
    """One key of a fixed list: its digest, never itself."""

    digest: bytes
    caller: Caller
    expires_at: float | None = None


class ListedKeys:
    """A fixed list of keys, for tests and for gateways without a store."""

    def __init__(self, keys: Iterable[ListedKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def of(cls, keys: Mapping[str, Caller]) -> ListedKeys:
        """From keys in clear, which are forgotten at once."""
        return cls(ListedKey(digest=digest_of(key), caller=caller) for key, caller in keys.items())

    def check(self, token: str, now: float) -> Caller | None:
        digest = digest_of(token)
        found = None
        for key in self._keys:  # all of them, so that the time taken says nothing
            if hmac.compare_digest(key.digest, digest) and (key.expires_at is None or now < key.expires_at):
                found = key.caller
        return found


class OpenKeys:
    """No keys at all: everybody is the default tenant and may do everything. For loopback."""

    _everybody = Caller(tenant=OPEN_TENANT, scopes=SCOPES, key_id="open")

    def __init__(self, *, here_only: bool = False) -> None:
        self._here_only = here_only  # only names of this machine lead here

    def check(self, token: str, now: float) -> Caller | None:
        return self._everybody

    def refuse_pages(self, headers: Mapping[str, str], scope: str) -> None:
        """Without keys, nothing but this tells a program of this machine from a web page that a browser on it shows.

        A page's request names the page in `Origin`, and the console's is our own. A page whose host was made to lead
        here after it was loaded gives itself away by that host's name.
        """
        host = headers.get("host", "")
        if self._here_only and not is_local_name(host):
            raise NotAuthorised(
                f"this gateway is open and answers to names of its own machine only, not to {host!r}",
                remedy="call it as 127.0.0.1 or localhost, make a key, or set gateway.allow_open",
                status=403,
            )
        origin = headers.get("origin")
        if origin is not None and scope != CALL and origin.partition("://")[2] != host:
            raise NotAuthorised(
                f"a page of {origin!r} may not use this API",
                remedy="open this gateway's own console, or make a key and send that",
                status=403,
            )


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def token_of(headers: Mapping[str, str]) -> str:
    """The key that a request carries: a bearer token, or `x-api-key` as Anthropic's clients send it."""
    given = headers.get("authorization", "")
    if given[:7].lower() == "bearer ":
        return given[7:].strip()
    return headers.get("x-api-key", "").strip()


def authorise(keys: Keys, headers: Mapping[str, str], scope: str, now: float) -> Principal:
    """Who is calling, or `NotAuthorised`."""
    token = token_of(headers)
    if len(token) > KEY_CHARS_MAX:
        raise NotAuthorised("the API key is too long to be one", remedy="send a key of this gateway")
    if isinstance(keys, OpenKeys):
        keys.refuse_pages(headers, scope)
    principal = keys.check(token, now)
    if principal is None:
        if not token:
            raise NotAuthorised(
                "no API key was given", remedy="send `Authorization: Bearer KEY` or `x-api-key: KEY`"
            )
        raise NotAuthorised(
            "the API key is not valid here",
            remedy="it may be mistyped, revoked or expired; `agentserve keys list` shows what is valid",
        )
    if scope not in principal.scopes and ADMIN not in principal.scopes:
        raise NotAuthorised(
            f"this key lacks the scope `{scope}`",
            remedy=f"use a key made with `agentserve keys create --scope {scope}`",
            status=403,
        )
    return principal


@lru_cache(NAMES_REMEMBERED)
def is_local_name(host: str) -> bool:
    """Is this `Host` one that no public name server can make lead here: an address, a bare name, a reserved one?"""
    name = host.strip().lower()
    name = name[: name.rfind("]") + 1] if name.startswith("[") else name.partition(":")[0]
    if "." not in name or name.endswith(LOCAL_NAMES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Does this listening address serve this machine alone?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_openness(host: str, *, open_mode: bool, allow_open: bool) -> None:
    """Refuse to serve strangers without keys unless the operator insists."""
    if open_mode and not allow_open and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host} without API keys",
            remedy="create one with `agentserve keys create`, listen on 127.0.0.1, or set gateway.allow_open",
        )
