"""The second tier: KV blocks that were evicted from the accelerator and are kept in host memory.

Rule: an LRU of block hashes. What the pool evicts enters, the longest unused leaves, and a hit costs the time
that its bytes need over the bus. Stock engines copy a block when it is computed; copying when it is evicted keeps the
same blocks within reach and costs no bus time that anything waits for. Nothing here knows requests or time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class HostTier:
    """At most `blocks` block hashes, the least recently used first."""

    def __init__(self, blocks: int) -> None:
        self.total = blocks
        self._held: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, evicted: Iterable[int]) -> list[int]:
        """These left the accelerator; those that had to make room for them."""
        for block in evicted:
            self._held[block] = None
            self._held.move_to_end(block)
        gone = []
        while len(self._held) > self.total:
            gone.append(self._held.popitem(last=False)[0])
        return gone

    def hits(self, hashes: Sequence[int], start: int, limit: int) -> int:
        """How many blocks from `start` on, without a hole, are here; they count as used now."""
        held = self._held
        if not held:
            return 0
        count = 0
        while start + count < limit and hashes[start + count] in held:
            held.move_to_end(hashes[start + count])
            count += 1
        return count

    def clear(self) -> None:
        """Everything is lost."""
        self._held.clear()
