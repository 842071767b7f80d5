"""How Python itself is set in a process that serves."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from typing import Any

# live programs are many small objects that live for minutes: look at the old ones seldom
GC_THRESHOLDS = (50_000, 50, 50)
# The journal's thread shares the interpreter with the requests. By Python's own setting a request that wakes while a
# batch is written waits up to 5 ms for it, at each of its turns.
SWITCH_INTERVAL_S = 0.001
# What is known of programs is looked up in tables of some megabytes, which are made anew, larger or smaller, as
# programs come and go. The C library takes such a block from the system for itself alone only until one was given
# back; from then on it cuts them out of its heap, and the holes stay: a tenth more memory after minutes of load. So it
# is told where the line is. Bodies of long prompts are below it, in the heap, which keeps a little for the next.
GLIBC_MMAP_FROM = (-3, 1 << 20)  # M_MMAP_THRESHOLD
GLIBC_KEEP_FREE = (-1, 8 << 20)  # M_TRIM_THRESHOLD
GLIBC_ARENAS = (-8, 1)  # M_ARENA_MAX: what is freed in one of several heaps serves no other


def settle_interpreter() -> None:
    """What is loaded by now stays: keep the collector from going through it again and again. Requests wait for nobody
    long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def settle_allocator() -> None:
    """How the C library holds memory, before any thread begins; where it is not glibc there is nothing to settle."""
    # no such function, or no C library to be had by itself
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in (GLIBC_MMAP_FROM, GLIBC_KEEP_FREE, GLIBC_ARENAS):
            mallopt(setting, value)


def loop_factory() -> Any:
    """uvloop's, where it can be had."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
