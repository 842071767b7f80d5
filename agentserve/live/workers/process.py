"""A worker process: `python -m agentserve.live.workers.process`, as the scheduler's process starts it.

Rule: it listens on the socket and talks over the link that it is given, and lives no longer than the scheduler's
process: without it, it closes the port at once, so that whoever comes next can have it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys

import msgspec
import uvicorn

from agentserve.live.doors import doors
from agentserve.live.interpreter import loop_factory, settle_allocator, settle_interpreter
from agentserve.live.server import Patience, limited
from agentserve.live.workers.front import Front

BACKLOG = 4096


class Lot(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told when it is started."""

    listen_fds: list[int]
    link_fd: int
    log_level: int
    header_bytes_max: int
    body_bytes_max: int
    bodies_bytes_max: int
    connections_max: int  # to each engine
    drain_timeout_s: float
    patience: Patience


def main(argv: list[str] | None = None) -> int:
    """Serve until the signal, or until the other end of the link is gone."""
    lot = msgspec.json.decode((argv or sys.argv[1:])[0], type=Lot)
    logging.basicConfig(level=lot.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(max(lot.log_level, logging.WARNING))
    settle_allocator()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(lot))
    return 0


async def serve(lot: Lot) -> None:
    """Until told to stop, then as long as its requests take."""
    front = Front(lot.connections_max, lambda: abandon(server))
    server = uvicorn.Server(
        uvicorn.Config(
            front,
            http=limited(  # type: ignore[arg-type]  # buffered protocols too
                header_bytes_max=lot.header_bytes_max,
                body_bytes_max=lot.body_bytes_max,
                bodies_bytes_max=lot.bodies_bytes_max,
                refused=front.not_taken,
                patience=lot.patience,
            ),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, math.ceil(lot.drain_timeout_s)),
        )
    )
    link = socket.socket(fileno=lot.link_fd)
    link.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: front.link, link)
    listeners = doors(socket.socket(fileno=fd) for fd in lot.listen_fds)
    settle_interpreter()
    await server.serve(sockets=listeners)


def abandon(server: uvicorn.Server) -> None:
    """The scheduler's process is gone: let the port go, and end."""
    for listening in getattr(server, "servers", []):
        listening.close()
    server.should_exit = server.force_exit = True


if __name__ == "__main__":
    sys.exit(main())
