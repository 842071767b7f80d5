"""Files that the verbs write: whole, or not at all.

Rule: under the name that was asked for stands what was there before, until all of the new is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str) -> Iterator[str]:
    """Where to write what shall stand at `path` once the block is through; what an error cut off is deleted.

    A device, a pipe, and a file in a folder that takes no other, are written in place.
    """
    target = os.path.realpath(path)  # a link stays one
    there = os.path.exists(target)
    if (there and not os.path.isfile(target)) or not os.access(os.path.dirname(target), os.W_OK):
        yield path
        return
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".{os.getpid()}.part.{name}")  # the name's ending says what is in it
    try:
        yield part
        if os.path.exists(part):
            if there:
                shutil.copymode(target, part)
            os.replace(part, target)
    finally:
        Path(part).unlink(missing_ok=True)
