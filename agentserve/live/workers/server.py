"""The scheduler's process where there are workers: it listens itself to nobody but them.

Rule: it holds the port, a listening socket for each worker, so that no connection is lost when one of them dies:
whoever is started in its place goes on with its queue. Workers end with it: by a signal, or because their link breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import sys
from typing import Any

import msgspec
import uvicorn

from agentserve.live.app import Gateway
from agentserve.live.serve import BACKLOG, GatewayServer
from agentserve.live.server import Patience
from agentserve.live.workers.desk import Desk
from agentserve.live.workers.process import Lot

log = logging.getLogger("agentserve.workers")

RESTART_S = 0.5  # before a worker is started in a dead one's place; doubled for each that dies young
RESTART_S_MAX = 30.0
YOUNG_S = 10.0
STOP_S = 5.0
PING_S = 5.0
SILENT_S = 30.0  # a worker that says nothing for so long hangs, and its clients with it


class FrontedServer(GatewayServer):
    """A gateway whose clients' connections are with worker processes."""

    def __init__(
        self, config: uvicorn.Config, gateway: Gateway, *, workers: int, patience: Patience | None
    ) -> None:
        super().__init__(config, gateway)
        self._workers = workers
        self._patience = patience or Patience()
        self._listeners: list[list[socket.socket]] = []  # of each worker
        self._processes: set[asyncio.subprocess.Process] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._leaving = False
        self.restarts = 0

    def port(self) -> int:
        """Where the workers listen."""
        return int(self._listeners[0][0].getsockname()[1])

    @property
    def worker_pids(self) -> list[int]:
        """The processes that are there now."""
        return [process.pid for process in self._processes]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            self._listeners = listeners(self.config.host, self.config.port, self._workers)
        except OSError as error:
            log.error("cannot listen on %s:%d: %s", self.config.host, self.config.port, error)
            raise SystemExit(1) from error
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(sockets)) for sockets in self._listeners]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving = True
        for keeper in self._keepers:
            keeper.cancel()
        for listener in itertools.chain(*self._listeners):
            listener.close()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await super().shutdown(sockets)
        for process in list(self._processes):
            await stopped(process)

    async def _keep(self, listening: list[socket.socket]) -> None:
        """A worker on these sockets, and another in its place when it dies."""
        loop = asyncio.get_running_loop()
        wait_s = RESTART_S
        while True:
            since = loop.time()
            try:
                status = await self._worker(listening)
                what = f"a worker process ended with status {status} and its clients were cut off"
            except OSError as error:  # out of processes, file descriptors or memory: that may pass
                what = f"a worker process could not be started: {error}"
            self.restarts += 1
            self._gateway.telemetry.count("fallbacks", reason="worker")
            wait_s = RESTART_S if loop.time() - since > YOUNG_S else min(2 * wait_s, RESTART_S_MAX)
            log.error("%s; another starts in %g s", what, wait_s)
            await asyncio.sleep(wait_s)

    async def _worker(self, listening: list[socket.socket]) -> int:
        """Start one and wait for its end."""
        ours, theirs = socket.socketpair()
        lot = self._lot([sock.fileno() for sock in listening], theirs.fileno())
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "agentserve.live.workers.process",
                    msgspec.json.encode(lot).decode(),
                    pass_fds=(*lot.listen_fds, lot.link_fd),
                    start_new_session=True,  # a key pressed in our terminal is for us
                )
        except BaseException:
            ours.close()
            raise
        self._processes.add(process)
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        app = self.config.loaded_app
        _, desk = await loop.connect_accepted_socket(
            lambda: Desk(app, self.server_state, self.lifespan.state, self._gateway.not_taken), ours
        )
        watching = loop.create_task(watch(desk, process))
        try:
            status = await process.wait()
        finally:
            watching.cancel()
        self._processes.discard(process)
        return status

    def _lot(self, listen_fds: list[int], link_fd: int) -> Lot:
        settings, share = self._gateway.settings, self._workers
        limits = settings.limits
        return Lot(
            listen_fds=listen_fds,
            link_fd=link_fd,
            log_level=logging.getLogger().getEffectiveLevel(),
            header_bytes_max=limits.header_bytes_max,
            body_bytes_max=limits.body_bytes_max,
            bodies_bytes_max=max(limits.bodies_bytes_max // share, limits.body_bytes_max),
            connections_max=max(limits.upstream_connections_max // share, 1),
            drain_timeout_s=settings.gateway.drain_timeout_s,
            patience=self._patience,
        )


async def watch(desk: Desk, process: asyncio.subprocess.Process) -> None:
    """End a worker that hangs."""
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    while True:
        desk.ping()
        await asyncio.sleep(PING_S)
        late = (
            loop.time() - asked_at > 2 * PING_S
        )  # we were away ourselves: what came meanwhile is not read yet
        asked_at = loop.time()
        if not late and asked_at - desk.heard_at > SILENT_S:
            log.error("the worker process %d does not answer and is ended", process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def listeners(host: str | None, port: int, count: int) -> list[list[socket.socket]]:
    """For each worker, sockets on a port that all share: the kernel spreads the connections among them.

    Sharing is for us alone: a port that anybody else has is refused, as it would be to a single socket.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    made: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, address in places:
            where = (address[0], port, *address[2:])
            with bound(family, where, shared=False) as alone:
                where = alone.getsockname()
                port = where[1]  # for the other addresses, where any would do
            for sockets in made:
                sockets.append(bound(family, where, shared=True))
                sockets[-1].listen(BACKLOG)
    except OSError:
        for sock in itertools.chain(*made):
            sock.close()
        raise
    return made


def bound(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    """A socket at the address."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


async def stopped(process: asyncio.subprocess.Process) -> None:
    """It has had its time."""
    if process.returncode is None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
