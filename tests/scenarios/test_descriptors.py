"""Every open file descriptor is told by what it is, of this very process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.scenarios.descriptors import descriptors

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="told from /proc")


def test_sockets_are_told_by_their_ports_and_none_is_left_out(tmp_path: Path) -> None:
    us, engine = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    port, engine_port = us.getsockname()[1], engine.getsockname()[1]
    before = descriptors(os.getpid(), port, [engine_port])
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    taken = [us.accept()[0] for _ in clients]
    sent = [socket.create_connection(("127.0.0.1", engine_port)) for _ in range(2)]
    with (tmp_path / "scenario.db").open("wb"):
        after = descriptors(os.getpid(), port, [engine_port])
    for sock in (us, engine, *clients, *taken, *sent):
        sock.close()
    more = {kind: after.get(kind, 0) - before.get(kind, 0) for kind in after}
    # the clients' own ends are here too, which belong to nobody that it was told of
    assert {kind: count for kind, count in more.items() if count} == {
        "clients": 3,
        "engines": 2,
        "other_sockets": 3,
        "database": 1,
    }
    assert before["listening"] >= 2
