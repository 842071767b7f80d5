"""How Python itself is set in a process that serves."""

from __future__ import annotations

import gc
import sys
from typing import Any

# live programs are many small objects that live for minutes: look at the old ones seldom
GC_THRESHOLDS = (50_000, 50, 50)
# The journal's thread shares the interpreter with the requests. By Python's own setting a request that wakes while a
# batch is written waits up to 5 ms for it, at each of its turns.
SWITCH_INTERVAL_S = 0.001


def settle_interpreter() -> None:
    """What is loaded by now stays: keep the collector from going through it again and again. Requests wait for nobody
    long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def loop_factory() -> Any:
    """uvloop's, where it can be had."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
