"""Several doors to one port, so that a crowd of clients that dial at once need not enter one by one.

Rule: a door is the same listening socket once more, under a number of its own. The event loop (libuv's) takes at most
one connection from each number in a turn; with hundreds of streams under way a turn lasts tens of milliseconds, and
whoever dials would wait for as many turns as others stand before it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

import uvicorn

DOORS = 32  # connections taken in a turn; each costs one failed look more when a single client comes


def doors(listening: Iterable[socket.socket]) -> list[socket.socket]:
    """These sockets, each as often as may be taken from it in a turn."""
    return [door for sock in listening for door in (sock, *[sock.dup() for _ in range(DOORS - 1)])]


async def open_doors(server: uvicorn.Server) -> None:
    """Let a server that has started take from its sockets by more doors; it closes them with its own."""
    config, loop = server.config, asyncio.get_running_loop()

    def connection() -> asyncio.Protocol:
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return made

    for listening in list(server.servers):
        for sock in listening.sockets:
            for _ in range(DOORS - 1):
                door = sock.dup()
                server.servers.append(await loop.create_server(connection, sock=door, backlog=config.backlog))
