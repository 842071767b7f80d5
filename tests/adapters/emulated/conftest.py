"""An emulated server on a free port of loopback, under a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from agentserve_adapters.emulated import EmulatedOptions, EmulatedServer

Serve = Callable[..., contextlib.AbstractAsyncContextManager[tuple[str, EmulatedServer]]]


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[str, EmulatedServer]]:
    """Base URL and the application behind it."""
    app = EmulatedServer(EmulatedOptions(**{"time_scale": 50.0, **options}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def serve() -> Serve:
    return serving
