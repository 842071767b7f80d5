"""Engines behind TLS, HTTP/2 or a proxy, through httpx.

Rule: bytes pass undecoded; httpx's exceptions end here. It costs several times what the lean client costs, so it
serves where its abilities are needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from agentserve.errors import ConfigError, EngineBroke, EngineError, EngineTimeout, EngineUnreachable
from agentserve.live.upstream.seam import Deadlines, RawHeaders

KEEPALIVE_S = 30.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# httpx's mounts: what listens on this machine is reached directly, for no proxy of the environment could mean it, and
# a key that was sent there would be the proxy's to read
THIS_MACHINE: dict[str, None] = {f"all://{f'[{host}]' if ':' in host else host}": None for host in LOOPBACK}


class HostedReply:
    """A reply of httpx, read as raw bytes."""

    def __init__(self, reply: httpx.Response, deadlines: Deadlines, overall_at: float) -> None:
        self.status = reply.status_code
        self.headers = [(name.lower(), value) for name, value in reply.headers.raw]
        self.done = False
        self._reply = reply
        self._deadlines = deadlines
        self._overall_at = overall_at
        self._chunks: AsyncIterator[bytes] = reply.aiter_raw()
        self._closing: asyncio.Task[None] | None = None

    async def read(self) -> bytes:
        if self.done:
            return b""
        loop = asyncio.get_running_loop()
        until = min(loop.time() + self._deadlines.idle_s, self._overall_at)
        try:
            async with asyncio.timeout_at(until):
                async for chunk in self._chunks:
                    if chunk:
                        return chunk
        except TimeoutError:
            raise EngineTimeout("the engine took too long: waited between two bytes") from None
        except httpx.HTTPError as error:
            raise engine_error(error) from error
        self.done = True
        return b""

    def close(self) -> None:
        """Closing takes turns of the loop; it is done beside, and nobody waits for it."""
        if self._closing is None and not self._reply.is_closed:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(self._deadlines.connect_s):
                await self._reply.aclose()
        except (TimeoutError, httpx.HTTPError):
            return


def _client(connections_max: int) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            limits=httpx.Limits(
                max_connections=connections_max,
                max_keepalive_connections=connections_max,
                keepalive_expiry=KEEPALIVE_S,
            ),
            http2=_http2_installed(),
            follow_redirects=False,  # an engine is only where the settings say
            trust_env=True,
            mounts=THIS_MACHINE,
        )
    except OSError as error:
        raise ConfigError(
            f"SSL_CERT_FILE or SSL_CERT_DIR cannot be used ({error})",
            remedy="name a PEM file, or a folder, of certificates",
        ) from error
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"the proxy that the environment names cannot be used ({error})",
            remedy="correct HTTPS_PROXY or ALL_PROXY, or name the engine's host in NO_PROXY",
        ) from error


class HostedUpstream:
    """The connections to one hosted engine. `client` is the seam for tests."""

    def __init__(
        self, url: str, *, connections_max: int = 1024, client: httpx.AsyncClient | None = None
    ) -> None:
        self._url = httpx.URL(url.rstrip("/"))
        self._client = client or _client(connections_max)

    async def send(
        self, method: str, path: str, headers: RawHeaders, body: bytes, *, deadlines: Deadlines
    ) -> HostedReply:
        overall_at = asyncio.get_running_loop().time() + deadlines.overall_s
        request = self._client.build_request(
            method,
            self._url.copy_with(raw_path=self._url.raw_path.rstrip(b"/") + path.encode("ascii")),
            headers=[(name, value) for name, value in headers],
            content=body,
            timeout=httpx.Timeout(None, connect=deadlines.connect_s, pool=deadlines.first_byte_s),
        )
        for name in ("user-agent", "accept-encoding"):  # httpx adds its own: ours or none
            if not any(given.lower() == name.encode() for given, _ in headers):
                request.headers.pop(name, None)
        try:
            async with asyncio.timeout(min(deadlines.first_byte_s, deadlines.overall_s)):
                reply = await self._client.send(request, stream=True)
        except TimeoutError:
            raise EngineTimeout("the engine took too long: waited for the first byte") from None
        except httpx.HTTPError as error:
            raise engine_error(error) from error
        return HostedReply(reply, deadlines, overall_at)

    async def stop(self) -> None:
        await self._client.aclose()


def engine_error(error: httpx.HTTPError) -> EngineError:
    """What an exception of httpx means for the step."""
    if isinstance(error, httpx.ConnectTimeout):  # nothing was sent
        return EngineUnreachable("no connection in time")
    if isinstance(error, httpx.TimeoutException):
        return EngineTimeout(f"the engine took too long: {type(error).__name__}")
    if isinstance(error, (httpx.RemoteProtocolError, httpx.DecodingError)):
        if "disconnected" in str(error) or "peer closed" in str(error):
            return EngineUnreachable(f"the engine closed the connection: {error}")
        return EngineBroke(f"the engine's reply is not HTTP: {error}")
    return EngineUnreachable(f"the engine cannot be reached: {str(error) or type(error).__name__}")


def _http2_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("h2") is not None
