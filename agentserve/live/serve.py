"""Runs the gateway on a socket: uvicorn for sockets, signals and lifespan, our own protocol class on each connection.

Rule: on SIGTERM nothing that has begun is cut while there is time: the listener closes, new requests on open
connections are refused with a hint, streams finish up to the drain limit, and only then does everything close.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable

import uvicorn

from agentserve.errors import ConfigError
from agentserve.live.app import Gateway
from agentserve.live.auth import OpenKeys, check_openness
from agentserve.live.doors import open_doors
from agentserve.live.interpreter import settle_interpreter
from agentserve.live.server import Patience, limited

BACKLOG = 4096


class GatewayServer(uvicorn.Server):
    """uvicorn's server, which lets the gateway drain before it closes."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._alone = False  # is the process ours?
        self.on_started: Callable[[], None] | None = None  # told once connections are taken

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._alone = True
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await open_doors(self)
        if self._alone:
            settle_interpreter()
        if self.started and self.on_started is not None:
            self.on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.leave()
        await super().shutdown(sockets)
        # uvicorn would raise the signal once more when it is done, and the process would end before what stands
        # around the server (the store, the spans) is closed
        self._captured_signals.clear()

    def port(self) -> int:
        """Where it listens, once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])


def server_for(
    gateway: Gateway, *, host: str | None = None, port: int | None = None, patience: Patience | None = None
) -> GatewayServer:
    """A server of the gateway, with worker processes where they are set. Refuses to serve strangers without keys."""
    settings = gateway.settings
    if settings.gateway.workers < 1:
        raise ConfigError(
            f"gateway.workers is {settings.gateway.workers}",
            remedy="1 serves all in one process, more share the port",
        )
    host = settings.gateway.host if host is None else host
    check_openness(host, open_mode=isinstance(gateway.keys, OpenKeys), allow_open=settings.gateway.allow_open)
    config = uvicorn.Config(
        gateway,
        host=host,
        port=settings.gateway.port if port is None else port,
        http=limited(  # type: ignore[arg-type]  # buffered protocols too
            header_bytes_max=settings.limits.header_bytes_max,
            body_bytes_max=settings.limits.body_bytes_max,
            bodies_bytes_max=settings.limits.bodies_bytes_max,
            refused=gateway.not_taken,
            patience=patience,
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client does not get to say where it comes from
        backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, math.ceil(settings.gateway.drain_timeout_s)),
    )
    if settings.gateway.workers == 1:
        return GatewayServer(config, gateway)
    from agentserve.live.workers.server import FrontedServer

    return FrontedServer(config, gateway, workers=settings.gateway.workers, patience=patience)


async def serve(gateway: Gateway, *, host: str | None = None, port: int | None = None) -> None:
    """Serve until a signal says to stop, then drain."""
    await server_for(gateway, host=host, port=port).serve()


async def started(server: GatewayServer, *, timeout_s: float = 10.0) -> asyncio.Task[None]:
    """Run the server in this loop without its signal handlers; returns once it listens. For tests and demos."""
    task = asyncio.get_running_loop().create_task(server._serve())
    async with asyncio.timeout(timeout_s):
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    if task.done():
        task.result()
    return task
