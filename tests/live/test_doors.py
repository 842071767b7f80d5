"""A crowd of clients that dial at once, on the event loop that takes one connection from a socket in a turn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from agentserve.live.doors import DOORS, doors, open_doors

uvloop = pytest.importorskip("uvloop")

CLIENTS = 4 * DOORS


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Nobody asks anything of it."""


async def by_itself(server: uvicorn.Server) -> None:
    """As the gateway starts."""
    await server.startup()
    await open_doors(server)


async def on_given_sockets(server: uvicorn.Server) -> None:
    """As a worker starts."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=CLIENTS)
    await server.startup(sockets=doors([listening]))


async def turns(start: Callable[[uvicorn.Server], Awaitable[None]]) -> int:
    """How many turns of the loop it takes until all clients that dialled in one of them are taken."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, backlog=CLIENTS))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await start(server)
    assert len(server.servers) == DOORS
    address = server.servers[0].sockets[0].getsockname()
    clients = [socket.create_connection(address) for _ in range(CLIENTS)]
    count = 0
    async with asyncio.timeout(30.0):
        while len(server.server_state.connections) < CLIENTS:
            await asyncio.sleep(0)
            count += 1
    for client in clients:
        client.close()
    await server.shutdown()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return count


@pytest.mark.parametrize("start", [by_itself, on_given_sockets])
def test_a_crowd_of_clients_is_taken_by_many_in_a_turn(
    start: Callable[[uvicorn.Server], Awaitable[None]],
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns(start)) <= CLIENTS // 2
