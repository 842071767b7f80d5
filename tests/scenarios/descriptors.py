"""What a process's open file descriptors are: each is told from `/proc`, so that none stays unexplained.

Rule: it only looks. A socket is a client's by our port at its near end, an engine's by the engine's port at its far
end, and it listens or not by the kernel's word.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

LISTENS = "0A"


def descriptors(pid: int, port: int, engines: Iterable[int]) -> dict[str, int]:
    """How many are clients' connections, engines', listening sockets, other sockets, database files and the rest."""
    engine_ports = set(engines)
    ends = tcp_ends(pid)
    found: Counter[str] = Counter()
    for target in targets(pid):
        if target.startswith("socket:["):
            near, far, state = ends.get(target[8:-1], (0, 0, ""))
            if state == LISTENS:
                found["listening"] += 1
            elif near == port:
                found["clients"] += 1
            elif far in engine_ports:
                found["engines"] += 1
            else:
                found["other_sockets"] += 1
        elif ".db" in target:
            found["database"] += 1
        else:
            found["other"] += 1
    return dict(sorted(found.items()))


def targets(pid: int) -> list[str]:
    """What each descriptor stands for."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(link))
    return found


def tcp_ends(pid: int) -> dict[str, tuple[int, int, str]]:
    """By inode: the near port, the far port and the state of every TCP socket that the process can see."""
    ends: dict[str, tuple[int, int, str]] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                near, far = (int(fields[i].rpartition(":")[2], 16) for i in (1, 2))
                ends[fields[9]] = (near, far, fields[3])
    return ends
