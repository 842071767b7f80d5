"""HTTP clients carry the program: one wrap around the sending of each request.

Rule: headers are added only to requests for the gateway's own scheme, host and port, never over one that is already
there, and are taken off again where a redirect leads elsewhere. The rest of the request is not looked at.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, Callable, MutableMapping

from agentserve_sdk import _client
from agentserve_sdk._context import headers
from agentserve_sdk._imports import when_imported

MARK = "_agentserve_wrapped"
EXTENSION = "agentserve"
PREFIX = "x-agentserve-"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})  # names of one host: people write either


def install() -> None:
    """Wrap what is imported, and what will be; twice is once."""
    for name in ("httpx", "httpx2"):
        when_imported(name, httpx)
    when_imported("requests.sessions", requests)
    when_imported("aiohttp.client_reqrep", aiohttp)
    when_imported("http.client", stdlib)


def httpx(module: ModuleType) -> None:
    """`httpx`, and `httpx2` which is made alike."""
    # One hop of a redirected request at a time, where the name exists; else the whole of it.
    for cls, plain in ((module.Client, False), (module.AsyncClient, True)):
        name = "_send_single_request" if hasattr(cls, "_send_single_request") else "send"
        _wrap(cls, name, _httpx_async if plain else _httpx_sync)


def _httpx_sync(sends: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _httpx_request(request)
        return sends(self, request, *args, **kwargs)

    return send


def _httpx_async(sends: Callable[..., Any]) -> Callable[..., Any]:
    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _httpx_request(request)
        return await sends(self, request, *args, **kwargs)

    return send


def _httpx_request(request: Any) -> None:
    try:
        url = request.url
        if ours(url.scheme, url.host, url.port):
            if add(request.headers):
                request.extensions[EXTENSION] = True
        elif request.extensions.pop(EXTENSION, None):
            remove(request.headers)
    except Exception:
        _client.log.debug("agentserve could not add its headers", exc_info=True)


def requests(module: ModuleType) -> None:
    """`requests`: its `send` is called for each hop, and `rebuild_auth` between two."""

    def sending(sends: Callable[..., Any]) -> Callable[..., Any]:
        def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            _quietly(lambda: add(request.headers) if ours_url(request.url) else None)
            return sends(self, request, *args, **kwargs)

        return send

    def rebuilding(rebuilds: Callable[..., Any]) -> Callable[..., Any]:
        def rebuild_auth(self: Any, prepared_request: Any, response: Any) -> Any:
            url = prepared_request.url
            _quietly(lambda: None if ours_url(url) else remove(prepared_request.headers))
            return rebuilds(self, prepared_request, response)

        return rebuild_auth

    _wrap(module.Session, "send", sending)
    _wrap(module.Session, "rebuild_auth", rebuilding)


def aiohttp(module: ModuleType) -> None:
    """`aiohttp`: each hop is a request of its own, made from the caller's headers and not from the last hop's."""

    def sending(sends: Callable[..., Any]) -> Callable[..., Any]:
        async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
            url = self.url
            _quietly(lambda: add(self.headers) if ours(url.scheme, url.host, url.port) else None)
            return await sends(self, *args, **kwargs)

        return send

    # the class that has `send` moved into a base class in later versions
    cls = next((c for c in module.ClientRequest.__mro__ if "send" in vars(c)), None)
    if cls is not None:
        _wrap(cls, "send", sending)


def stdlib(module: ModuleType) -> None:
    """`http.client`, and `urllib.request` on top of it: a redirect is a request of its own, without our headers."""

    def requesting(requests: Callable[..., Any]) -> Callable[..., Any]:
        def request(
            self: Any, method: Any, url: Any, body: Any = None, headers: Any = None, **kwargs: Any
        ) -> Any:
            return requests(self, method, url, body, _stdlib_headers(self, headers or {}), **kwargs)

        return request

    _wrap(module.HTTPConnection, "request", requesting)


def _stdlib_headers(connection: Any, given: Any) -> Any:
    try:
        scheme = "https" if connection.default_port == _client.PORTS["https"] else "http"
        if ours(scheme, connection.host, connection.port):
            found = {name.lower(): value for name, value in given.items()}
            if add(found):
                return found
    except Exception:
        _client.log.debug("agentserve could not add its headers", exc_info=True)
    return given


def ours(scheme: Any, host: Any, port: Any) -> bool:
    """Is it the gateway that is asked?"""
    origin = _client.settings().origin
    if origin is None or (scheme, port or _client.PORTS.get(scheme)) != (origin[0], origin[2]):
        return False
    return bool(host == origin[1] or (host in LOOPBACK and origin[1] in LOOPBACK))


def ours_url(url: Any) -> bool:
    """The same, of an address in one piece."""
    return ours(*(_client.origin_of(str(url)) or (None, None, None)))


def add(existing: MutableMapping[str, str]) -> bool:
    """The current program's headers, unless the caller has given some of their own."""
    found = headers()
    if not found or f"{PREFIX}program-id" in existing:
        return False
    for name, value in found.items():
        if name not in existing:
            existing[name] = value
    return True


def remove(existing: MutableMapping[str, str]) -> None:
    """All of ours."""
    for name in [name for name in existing if name.lower().startswith(PREFIX)]:
        del existing[name]


def _quietly(what: Callable[[], object]) -> None:
    try:
        what()
    except Exception:
        _client.log.debug("agentserve could not add its headers", exc_info=True)


def _wrap(cls: Any, name: str, wrapping: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    inner = getattr(cls, name)
    if getattr(inner, MARK, False):
        return
    outer = functools.wraps(inner)(wrapping(inner))
    setattr(outer, MARK, True)
    setattr(cls, name, outer)
