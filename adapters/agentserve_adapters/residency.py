"""What an engine holds of each program, folded from its KV events.

Rule: only what the engine said counts. A block belongs to the programs whose chains run through it; a
program holds the leading run of its chain that is resident, since a prefix with a hole is of no use behind
the hole. Of a chain whose beginning was never heard of, nothing is said. Work per event is in the blocks it
names and the programs that share them, never in all programs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from agentserve.ports import KvChange, KvHolding

PROGRAMS_MAX = 100_000
BLOCKS_MAX = 4_000_000


@dataclass(slots=True)
class _Block:
    parent: int | None
    tokens: int
    depth_tokens: int  # tokens from the prompt's start to this block's end
    copies: int = 0  # how many of it the engine holds
    leaves: set[str] = field(default_factory=set)  # programs whose chain ends here
    children: set[int] = field(default_factory=set)


class Residency:
    """Fed with an engine's changes; answers how much of a program is there."""

    def __init__(self, *, medium: str = "GPU", counts_copies: bool = False) -> None:
        """`counts_copies`: the engine may hold a block twice and reports each copy's coming and going."""
        self._medium = medium
        self._counts_copies = counts_copies
        self._blocks: dict[int, _Block] = {}
        self._tips: OrderedDict[str, int] = OrderedDict()  # program -> its deepest block, oldest first
        self._resident_tokens = 0

    @property
    def resident_tokens(self) -> int:
        """All that is resident, shared blocks counted once."""
        return self._resident_tokens

    def holds(self, block: int) -> bool:
        """Is this block there?"""
        found = self._blocks.get(block)
        return found is not None and found.copies > 0

    def holding(self, program: str) -> KvHolding | None:
        """How much of the program is there; None where it cannot be told."""
        tip = self._tips.get(program)
        leading = None if tip is None else self._leading(tip)
        if tip is None or leading is None:
            return None
        return KvHolding(program=program, tokens=leading, tokens_known=self._blocks[tip].depth_tokens)

    def apply(self, change: KvChange) -> list[KvHolding]:
        """Take a change in; the holdings that it altered."""
        if change.kind == "cleared":
            return self._clear()
        if change.medium != self._medium:
            return []
        touched = self._store(change) if change.kind == "stored" else self._remove(change)
        return [h for program in sorted(touched) if (h := self.holding(program)) is not None]

    def forget(self, program: str) -> None:
        """The program is over: its chain is no longer of interest."""
        tip = self._tips.pop(program, None)
        if tip is not None:
            self._blocks[tip].leaves.discard(program)
            self._prune(tip)

    def _store(self, change: KvChange) -> set[str]:
        parent = change.parent
        touched: set[str] = set()
        for h in change.hashes:
            block = self._blocks.get(h)
            if block is None:
                before = self._blocks[parent].depth_tokens if parent in self._blocks else 0
                block = _Block(parent, change.block_tokens, before + change.block_tokens)
                self._blocks[h] = block
                if parent in self._blocks:
                    self._blocks[parent].children.add(h)
            elif not block.copies:
                touched |= self._below(h)
            if not block.copies:
                self._resident_tokens += block.tokens
            block.copies = block.copies + 1 if self._counts_copies else 1
            parent = h
        if change.session is not None and change.hashes:
            self._extend(change.session, change.hashes[-1])
            touched.add(change.session)
        self._bound()
        return touched

    def _extend(self, program: str, tip: int) -> None:
        """The program's chain now ends at `tip`, unless its known one runs through it and goes deeper."""
        old = self._tips.get(program)
        if old is not None and old != tip:
            self._blocks[old].leaves.discard(program)
            self._prune(old)
        self._blocks[tip].leaves.add(program)
        self._tips[program] = tip
        self._tips.move_to_end(program)

    def _remove(self, change: KvChange) -> set[str]:
        touched: set[str] = set()
        for h in change.hashes:
            block = self._blocks.get(h)
            if block is None or not block.copies:
                continue
            block.copies -= 1
            if block.copies:
                continue
            self._resident_tokens -= block.tokens
            touched |= self._below(h)
            self._prune(h)
        return touched

    def _clear(self) -> list[KvHolding]:
        gone = [KvHolding(program=p, tokens=0, tokens_known=0) for p in sorted(self._tips)]
        self._blocks.clear()
        self._tips.clear()
        self._resident_tokens = 0
        return gone

    def _leading(self, tip: int) -> int | None:
        """Tokens of the leading resident run of the chain that ends at `tip`; None if its beginning is unknown."""
        found: int | None = tip
        leading = 0
        run_end: int | None = None
        while found is not None:
            block = self._blocks.get(found)
            if block is None:
                return None
            if block.copies:
                run_end = block.depth_tokens if run_end is None else run_end
            else:
                run_end = None
            if block.parent is None:
                leading = run_end or 0
            found = block.parent
        return leading

    def _below(self, h: int) -> set[str]:
        """The programs whose chains run through this block."""
        found: set[str] = set()
        stack = [h]
        while stack:
            block = self._blocks[stack.pop()]
            found |= block.leaves
            stack.extend(block.children)
        return found

    def _prune(self, h: int) -> None:
        """Drop blocks that are neither resident nor on a program's chain, from here upwards."""
        while True:
            block = self._blocks.get(h)
            if block is None or block.copies or block.leaves or block.children:
                return
            del self._blocks[h]
            parent = block.parent
            if parent is None or parent not in self._blocks:
                return
            self._blocks[parent].children.discard(h)
            h = parent

    def _bound(self) -> None:
        while len(self._tips) > PROGRAMS_MAX or (len(self._blocks) > BLOCKS_MAX and self._tips):
            self.forget(next(iter(self._tips)))
