"""Native pins: prefixes that the engine was told to hold until a time, as a research engine can and stock ones cannot.

Rule: a pin is a reference to a path of the pool, so eviction passes it by. A pin has an end, all together have a
budget, and a pin gives way when nothing else could run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentserve.engine.blocks import BlockPool, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A prefix that is held: its last node, its end, its length in blocks."""

    leaf: Node
    until: float
    blocks: int


class Pins:
    """Every pin of one engine, by name."""

    def __init__(self, pool: BlockPool, *, share_max: float) -> None:
        self.pool = pool
        self.blocks_max = int(share_max * pool.total)
        self._pins: dict[str, Pin] = {}

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def blocks(self) -> int:
        return sum(pin.blocks for pin in self._pins.values())

    @property
    def leaves(self) -> list[Node]:
        return [pin.leaf for pin in self._pins.values()]

    def hold(self, name: str, hashes: Sequence[int], until: float, *, spare: int) -> int:
        """Hold what is cached of this prefix, within the budget and `spare` blocks; how many blocks."""
        budget = min(self.blocks_max - self.blocks, spare)
        path, count = self.pool.match(hashes, min(len(hashes), max(budget, 0)))
        if count:
            self._pins[name] = Pin(leaf=self.pool.take(path), until=until, blocks=count)
        return count

    def drop(self, name: str) -> None:
        """Let it go, if it is there."""
        pin = self._pins.pop(name, None)
        if pin is not None:
            self.pool.release(pin.leaf, 0)

    def expire(self, now: float) -> None:
        """Let go whose time is over, in order of their ends."""
        if self._pins:
            for _, name in sorted((pin.until, name) for name, pin in self._pins.items() if pin.until <= now):
                self.drop(name)

    def drop_soonest(self) -> bool:
        """Let the pin go that would end first; whether there was one."""
        if not self._pins:
            return False
        self.drop(min(self._pins, key=lambda name: (self._pins[name].until, name)))
        return True

    def clear(self) -> None:
        """Everything is lost."""
        self._pins.clear()
