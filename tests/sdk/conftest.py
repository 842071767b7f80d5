"""A test gateway that the SDK talks to, and addresses where nothing good happens."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from agentserve_sdk import shutdown, testing


@pytest.fixture
def gateway() -> Iterator[testing.Gateway]:
    with testing.Gateway(integrations=False) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def off_after_each() -> Iterator[None]:
    yield
    shutdown(0.0)


@pytest.fixture
def stopped() -> str:
    """An address where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.fixture
def hung() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    done = threading.Event()
    kept: list[socket.socket] = []

    def accept() -> None:
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                kept.append(server.accept()[0])

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    done.set()
    thread.join()
    for one in [*kept, server]:
        one.close()
