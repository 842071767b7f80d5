"""How Python is set in a process that serves."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

GLIBC = hasattr(ctypes.CDLL(None), "mallinfo2") if sys.platform == "linux" else False
IN_ITS_OWN_MAPPING = """
import ctypes, sys
from agentserve.live.interpreter import settle_allocator

class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

told = ctypes.CDLL(None).mallinfo2
told.restype = Told
if sys.argv[1] == "settled":
    settle_allocator()
for _ in range(3):  # once such a block was given back, glibc holds the next ones in its heap
    table = bytearray(4 << 20)
    before = told().hblkhd
    del table
    after = told().hblkhd
print(before - after >= 4 << 20)
"""


def gives_back(how: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_MAPPING, how], capture_output=True, text=True, check=True
    )
    return done.stdout.strip() == "True"


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc 2.33 or newer; nothing is set there")
def test_an_outgrown_table_goes_back_to_the_system_each_time() -> None:
    assert gives_back("settled")
    assert not gives_back("as it is"), "glibc does so by itself now: settle_allocator is not needed any more"
