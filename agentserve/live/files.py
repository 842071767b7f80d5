"""How many connections this process may have, and for whom.

Rule: clients get at most half of what the system allows, so that engines can still be reached when clients are too
many: whoever gets no connection to an engine would blame the engine.
"""

from __future__ import annotations

import contextlib
import sys

FILES_OF_OURS = 64  # the database, listening sockets, probes
CLIENTS_MIN = 8


def raise_limit() -> None:
    """Take what the system allows at most: containers and shells often give 1,024 of half a million."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # another system than POSIX, or it will not
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def clients_max() -> int:
    """Clients' connections at a time."""
    try:
        import resource
    except ImportError:
        return sys.maxsize
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else max((files - FILES_OF_OURS) // 2, CLIENTS_MIN)
