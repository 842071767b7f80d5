"""The block pool against a brute-force model of a per-block pool, and against vLLM's behaviour by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.engine.blocks import BlockPool, Node


@dataclass
class Held:
    """A request in the model: the physical blocks it refers to, in order of its prompt."""

    hashes: list[int]
    blocks: list[int] = field(default_factory=list)
    full: int = 0


class PerBlock:
    """vLLM's pool, one block at a time: a list as free queue, a dict from hash to block, reference counts."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = list(range(total))  # head is taken first
        self.hash_of: dict[int, int] = {}
        self.block_of: dict[int, int] = {}
        self.refs = [0] * total
        self.evicted: list[int] = []

    def match(self, hashes: Sequence[int], limit: int) -> int:
        count = 0
        while count < limit and hashes[count] in self.block_of:
            count += 1
        return count

    def admit(self, hashes: list[int], hit: int, fresh: int) -> Held | None:
        found = [self.block_of[h] for h in hashes[:hit]]
        idle = [b for b in found if self.refs[b] == 0]
        if fresh > len(self.free) - len(idle):
            return None
        for block in found:
            if self.refs[block] == 0:
                self.free.remove(block)
            self.refs[block] += 1
        held = Held(hashes, found, hit)
        assert self.grow(held, fresh)
        return held

    def grow(self, held: Held, count: int) -> bool:
        if count > len(self.free):
            return False
        for _ in range(count):
            block = self.free.pop(0)
            if block in self.hash_of:
                self.evicted.append(self.hash_of[block])
                del self.block_of[self.hash_of.pop(block)]
            self.refs[block] = 1
            held.blocks.append(block)
        return True

    def fill(self, held: Held, upto: int) -> None:
        for i in range(held.full, upto):
            name, block = held.hashes[i], held.blocks[i]
            known = self.block_of.get(name)
            if known is None:
                self.block_of[name] = block
                self.hash_of[block] = name
                continue
            # computed by another meanwhile: adopt that copy, give this one back
            self.refs[block] = 0
            self.free.insert(0, block)
            if self.refs[known] == 0:
                self.free.remove(known)
            self.refs[known] += 1
            held.blocks[i] = known
        held.full = max(held.full, upto)

    def release(self, held: Held) -> None:
        blank = []
        for block in reversed(held.blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                if block in self.hash_of:
                    self.free.append(block)
                else:
                    blank.append(block)
        self.free[:0] = blank


@dataclass
class Real:
    """The same request in the pool under test."""

    leaf: Node
    hashed: int
    private: int


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["admit", "grow", "fill", "release"]),
        st.integers(0, 5),
        st.integers(0, 6),
        st.integers(1, 8),
    ),
    max_size=60,
)


def chain(stream: int, length: int) -> list[int]:
    """Prompts that share heads: stream s follows stream 0 for 2 blocks, then s % 2 for 2 more, then its own way."""
    return [
        i if i < 2 else 100 + (stream % 2) * 10 + i if i < 4 else 1000 + stream * 10 + i
        for i in range(length)
    ]


@settings(max_examples=300, deadline=None)
@given(MOVES, st.integers(6, 14))
def test_the_pool_hits_and_evicts_as_a_per_block_pool_does(
    moves: list[tuple[str, int, int, int]], total: int
) -> None:
    gone: list[int] = []
    pool = BlockPool(total, lambda kind, hashes, _: gone.extend(hashes) if kind == "removed" else None)
    model = PerBlock(total)
    pairs: list[tuple[Held, Real]] = []
    for move, which, stream, size in moves:
        if move == "admit":
            hashes = chain(stream, size)
            path, hit = pool.match(hashes, size)
            assert hit == model.match(hashes, size)
            fresh = size - hit
            held = model.admit(hashes, hit, fresh)
            idle = sum(same for node, same in path if node.refs == 0)
            assert (held is not None) == (fresh <= pool.free - idle)
            if held is not None:
                leaf = pool.take(path)
                assert pool.allocate(fresh)
                pairs.append((held, Real(leaf, hit, fresh)))
        elif pairs:
            held, real = pairs[which % len(pairs)]
            if move == "grow":
                extra = size % 3
                for _ in range(extra):
                    held.hashes.append(
                        held.hashes[-1] * 1009 + 5000 + stream
                    )  # a chain: never equal by chance
                grown = model.grow(held, extra)
                assert pool.allocate(extra) == grown
                if grown:
                    real.private += extra
                else:
                    del held.hashes[len(held.hashes) - extra :]
            elif move == "fill":
                upto = min(held.full + size % 4, len(held.hashes))
                model.fill(held, upto)
                if upto > real.hashed:
                    real.leaf = pool.store(real.leaf, held.hashes[real.hashed : upto])
                    real.private -= upto - real.hashed
                    real.hashed = upto
            else:
                pairs.pop(which % len(pairs))
                model.release(held)
                pool.release(real.leaf, real.private)
        pool.check()
        assert gone == model.evicted
        assert pool.free == len(model.free)
        assert pool.cached_free == sum(b in model.hash_of for b in model.free)


def admitted(pool: BlockPool, hashes: list[int]) -> Real:
    """A request that is computed whole."""
    path, hit = pool.match(hashes, len(hashes))
    leaf = pool.take(path)
    assert pool.allocate(len(hashes) - hit)
    leaf = pool.store(leaf, hashes[hit:])
    return Real(leaf, len(hashes), 0)


def test_the_tail_of_the_prompt_freed_first_is_evicted_first() -> None:
    gone: list[int] = []
    pool = BlockPool(6, lambda kind, hashes, _: gone.extend(hashes) if kind == "removed" else None)
    a, b = admitted(pool, [1, 2, 3]), admitted(pool, [11, 12, 13])
    pool.release(a.leaf, a.private)
    pool.release(b.leaf, b.private)
    assert pool.allocate(4)
    assert gone == [3, 2, 1, 13]


def test_a_hit_takes_a_prompt_out_of_the_queue_and_puts_it_at_its_end() -> None:
    gone: list[int] = []
    pool = BlockPool(6, lambda kind, hashes, _: gone.extend(hashes) if kind == "removed" else None)
    a, b = admitted(pool, [1, 2, 3]), admitted(pool, [11, 12, 13])
    pool.release(a.leaf, a.private)
    pool.release(b.leaf, b.private)
    again = admitted(pool, [1, 2, 3])
    pool.release(again.leaf, again.private)
    assert pool.allocate(3)
    assert gone == [13, 12, 11]


def test_a_shared_head_outlives_the_tails_that_stand_on_it() -> None:
    pool = BlockPool(8)
    a, b = admitted(pool, [1, 2, 3, 4]), admitted(pool, [1, 2, 13, 14])
    assert pool.referred == 6
    pool.release(a.leaf, 0)
    assert pool.cached_free == 2, "the head is still referred to by the other"
    assert pool.allocate(4)
    assert pool.resident([1, 2, 3, 4]) == 2
    pool.release(b.leaf, 0)
    pool.check()


def test_unfilled_blocks_are_used_again_before_any_cached_one() -> None:
    pool = BlockPool(4)
    a = admitted(pool, [1, 2])
    pool.release(a.leaf, 0)
    path, _ = pool.match([9], 1)
    leaf = pool.take(path)
    assert pool.allocate(2)
    pool.release(leaf, 2)
    assert pool.allocate(2)
    assert pool.resident([1, 2]) == 2


def test_nothing_changes_when_there_are_too_few_blocks() -> None:
    pool = BlockPool(4)
    a = admitted(pool, [1, 2, 3])
    assert not pool.allocate(2)
    assert (pool.blank, pool.private) == (1, 0)
    pool.release(a.leaf, 0)
    assert pool.allocate(4)
