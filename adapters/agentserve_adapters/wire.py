"""How adapters talk HTTP to an engine: bounded answers, named deadlines, our own exceptions.

Rule: an answer of any status is an `Answer`; only an engine that cannot be reached, answers too late or
does not speak HTTP raises. Redirects are not followed, and of the process environment only `SSL_CERT_FILE` and
`SSL_CERT_DIR` count: whose certificates are trusted, for steps as for what is asked here.
This module knows nothing of any engine's paths.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from agentserve.errors import ConfigError, EngineBroke, EngineTimeout, EngineUnreachable

ANSWER_BYTES_MAX = 16 * 1024 * 1024  # a large engine's /metrics is under 1 MiB
CONNECT_TIMEOUT_S = 5.0
CONTROL_TIMEOUT_S = 10.0  # probes, gauges, pins
GENERATE_TIMEOUT_S = 120.0  # a warm runs a whole prefill
CONNECTIONS_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine said."""

    status: int
    content: bytes
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON, or None where it is none."""
        try:
            return msgspec.json.decode(self.content)
        except (msgspec.DecodeError, RecursionError):
            return None

    def table(self) -> dict[str, Any]:
        """The body as a JSON object of a successful answer; empty where it is anything else."""
        found = self.json() if self.ok else None
        return found if isinstance(found, dict) else {}

    def complaint(self) -> str:
        """One line that says why it was refused, for receipts and warnings."""
        found = self.json()
        said: Any = found
        if isinstance(found, dict):
            said = found.get("error", found.get("message", found.get("detail", found)))
            if isinstance(said, dict):
                said = said.get("message", said)
        text = " ".join(str(said if said is not None else self.text).split())
        return f"HTTP {self.status}: {text[:200]}" if text else f"HTTP {self.status}"


class EngineWire:
    """One engine's HTTP side. Opens its connections on first use, closes them on `close`, or after the last answer."""

    def __init__(
        self,
        url: str,
        *,
        engine: str,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
    ) -> None:
        self.url = plain_url(url)
        self.host = urlsplit(self.url).hostname or ""
        self._engine = engine
        self._headers = _sendable(self.url, headers or {})
        self._transport = transport
        self._proxy = proxy
        self._client: httpx.AsyncClient | None = None
        self._closed = False
        self._asking = 0

    async def get(self, path: str, *, timeout_s: float = CONTROL_TIMEOUT_S) -> Answer:
        return await self._ask("GET", path, None, timeout_s, None)

    async def post(
        self,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = CONTROL_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return await self._ask("POST", path, body, timeout_s, headers)

    async def delete(self, path: str, body: Any = None, *, timeout_s: float = CONTROL_TIMEOUT_S) -> Answer:
        return await self._ask("DELETE", path, body, timeout_s, None)

    async def close(self) -> None:
        self._closed = True
        if not self._asking:
            await self._close()

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _ask(
        self, method: str, path: str, body: Any, timeout_s: float, headers: Mapping[str, str] | None
    ) -> Answer:
        sent = {**self._headers, **(headers or {})}
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            sent["content-type"] = "application/json"
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        self._asking += 1
        try:
            async with self._open().stream(
                method, self.url + path, content=content, headers=sent, timeout=timeout
            ) as reply:
                return Answer(
                    status=reply.status_code, content=await self._read(reply), headers=reply.headers
                )
        except httpx.TimeoutException as exc:
            raise EngineTimeout(
                f"{method} {self.url}{path} got no answer within {timeout_s:g} s", engine=self._engine
            ) from exc
        except (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.CloseError) as exc:
            raise EngineUnreachable(**_why_unreachable(self.url, exc), engine=self._engine) from exc
        except httpx.HTTPError as exc:
            raise EngineBroke(
                f"{self.url}{path} did not answer with HTTP ({exc})", engine=self._engine
            ) from exc
        finally:
            self._asking -= 1
            if (
                self._closed and not self._asking
            ):  # a client that is closed while it connects leaves that open
                await self._close()

    async def _read(self, reply: httpx.Response) -> bytes:
        content = bytearray()
        async for piece in reply.aiter_bytes():
            content += piece
            if len(content) > ANSWER_BYTES_MAX:
                raise EngineBroke(
                    f"{reply.request.url} answered with more than {ANSWER_BYTES_MAX} bytes",
                    engine=self._engine,
                )
        return bytes(content)

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=self._transport,
                proxy=self._proxy,
                trust_env=False,
                follow_redirects=False,
                # a TLS context takes tens of milliseconds to build, and most engines have no TLS
                verify=_trusted() if self.url.startswith("https://") else False,
                limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
            )
        return self._client


def _sendable(url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, unless one holds what no header may: then nothing would ever reach the engine."""
    for value in headers.values():
        if not (value.isascii() and value.isprintable()):
            raise ConfigError(
                f"the key of {url} has characters that cannot be sent",
                remedy="is there a line break in it, or text that stands for the key?",
            )
    return dict(headers)


def _trusted() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context(trust_env=True)
    except OSError as exc:
        raise ConfigError(
            f"SSL_CERT_FILE or SSL_CERT_DIR cannot be used ({exc})",
            remedy="name a PEM file, or a folder, of certificates",
        ) from exc


def _why_unreachable(url: str, exc: httpx.HTTPError) -> dict[str, str]:
    """The message and its remedy: an engine that answers with a wrong certificate is running."""
    said = str(exc) or type(exc).__name__
    _, found, why = said.partition("certificate verify failed: ")
    if found:
        message = f"the certificate of {url} is not trusted ({why.partition(' (_ssl')[0]})"
        if "mismatch" in why:
            return {"message": message, "remedy": "use an address that the certificate is for"}
        if "expired" in why or "not yet valid" in why:
            return {"message": message, "remedy": "renew it, or set the clock right"}
        return {
            "message": message,
            "remedy": "name a PEM file with it, or with the authority that signed it, in SSL_CERT_FILE",
        }
    if "WRONG_VERSION_NUMBER" in said:
        return {"message": f"{url} speaks no TLS", "remedy": "write http://"}
    if isinstance(exc, httpx.ReadError) and url.startswith("http://"):
        return {
            "message": f"{url} takes the connection and breaks it off ({said})",
            "remedy": "is it https://, or did it crash?",
        }
    return {
        "message": f"{url} does not answer ({said})",
        "remedy": "is the engine running, and is this its address?",
    }


def plain_url(url: str) -> str:
    """`url` without a trailing slash or `/v1`, so that every path can be put behind it."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is none
        sound = False
    if not sound:
        raise ConfigError(
            f"{url!r} is not an engine's address", remedy="write it as http://host:port or https://host"
        )
    return url.split("?")[0].rstrip("/").removesuffix("/v1").rstrip("/")
