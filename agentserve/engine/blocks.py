"""The paged KV pool of a vLLM V1 engine, kept as runs of blocks instead of single ones.

Rule: equal to a per-block pool in what is hit and in what is evicted when. A radix tree holds the computed blocks.
A node is a run of consecutive block hashes that has been shared and freed together, so matching compares list slices
and freeing a 100,000-token prompt touches a few nodes. Nodes that nobody refers to stand in the free queue in the order
in which they were freed, deepest first, and eviction eats a node from its tail: vLLM's order, tail first, least
recent first.

A departure: when two requests compute the same block at once, the second adopts the first's copy and gives its own back
(SGLang does so; vLLM keeps the copy until the request ends).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from agentserve.errors import InvariantBroken


class Node:
    """A run of blocks below its parent. `refs` counts requests and pins whose path goes through all of it."""

    __slots__ = ("children", "hashes", "parent", "refs")

    def __init__(self, parent: Node | None, hashes: list[int]) -> None:
        self.parent = parent
        self.hashes = hashes
        self.refs = 0
        self.children: dict[int, Node] = {}


Listener = Callable[[str, Sequence[int], int | None], None]  # "stored" | "removed", hashes, parent


class BlockPool:
    """`blocks` blocks: blank, or hashed and free, or referred to by a request (hashed in the tree, or its own)."""

    def __init__(self, blocks: int, listener: Listener | None = None) -> None:
        self.total = blocks
        self.blank = blocks
        self.cached_free = 0  # hashed blocks that nobody refers to
        self.private = 0  # held by requests, not hashed (yet)
        self.root = Node(None, [])
        self.queue: OrderedDict[Node, None] = OrderedDict()
        self.listener = listener
        self.evicted = 0

    @property
    def free(self) -> int:
        return self.blank + self.cached_free

    @property
    def referred(self) -> int:
        return self.total - self.blank - self.cached_free

    # -- lookup

    def match(self, hashes: Sequence[int], limit: int) -> tuple[list[tuple[Node, int]], int]:
        """The longest cached prefix of the first `limit` blocks: nodes with how much of each, and the count."""
        path: list[tuple[Node, int]] = []
        node = self.root
        at = 0
        while at < limit:
            child = node.children.get(hashes[at])
            if child is None:
                break
            run = child.hashes
            want = min(len(run), limit - at)
            if run[:want] == hashes[at : at + want]:
                same = want
            else:
                same = 1
                while same < want and run[same] == hashes[at + same]:
                    same += 1
            path.append((child, same))
            at += same
            if same < len(run):
                break
            node = child
        return path, at

    def resident(self, hashes: Sequence[int]) -> int:
        """How many leading blocks are cached now; changes nothing."""
        return self.match(hashes, len(hashes))[1]

    def take(self, path: list[tuple[Node, int]]) -> Node:
        """Refer to a matched path; its last node, which is split first when only its head was hit.

        Who refers to a path remembers the last node only: a later split puts new nodes above it, never below.
        """
        leaf = self.root
        for node, same in path:
            leaf = self._split(node, same) if same < len(node.hashes) else node
            self._ref(leaf)
        return leaf

    def _split(self, node: Node, at: int) -> Node:
        """The first `at` blocks become a node of their own, above. The deeper part keeps the place in the queue."""
        assert node.parent is not None
        upper = Node(node.parent, node.hashes[:at])
        upper.refs = node.refs
        node.parent.children[upper.hashes[0]] = upper
        node.hashes = node.hashes[at:]
        node.parent = upper
        upper.children[node.hashes[0]] = node
        if node.refs == 0:
            # both parts stay free; the upper is evicted right after the deeper
            self._insert_after(node, upper)
        return upper

    def _insert_after(self, node: Node, upper: Node) -> None:
        # An OrderedDict cannot insert in the middle; the caller refers to `upper` at once, which takes it out
        # again, so its place never matters.
        self.queue[upper] = None

    def _ref(self, node: Node) -> None:
        if node.refs == 0:
            del self.queue[node]
            self.cached_free -= len(node.hashes)
        node.refs += 1

    # -- allocation

    def allocate(self, count: int) -> bool:
        """`count` fresh blocks for a request, evicting as needed; False, and nothing changed, if there are too few."""
        if count > self.blank + self.cached_free:
            return False
        while count > self.blank:
            self._evict(count - self.blank)
        self.blank -= count
        self.private += count
        return True

    def _evict(self, wanted: int) -> None:
        """Up to `wanted` blocks from the node that was freed longest ago, its tail first."""
        node = next(iter(self.queue))
        count = min(wanted, len(node.hashes))
        gone = node.hashes[-count:]
        first = node.hashes[0]
        del node.hashes[-count:]
        self.cached_free -= count
        self.blank += count
        self.evicted += count
        if not node.hashes:
            del self.queue[node]
            assert node.parent is not None
            del node.parent.children[first]
        if self.listener is not None:
            self.listener("removed", gone[::-1], None)

    # -- a request's own blocks

    def store(self, leaf: Node, fresh: Sequence[int]) -> Node:
        """Private blocks became full: `fresh` are their hashes, following the path to `leaf`; its new last node."""
        at = 0
        count = len(fresh)
        while at < count:
            child = leaf.children.get(fresh[at])
            if child is not None:
                # somebody computed the same meanwhile: adopt theirs, give ours back
                same = 1
                most = min(len(child.hashes), count - at)
                while same < most and child.hashes[same] == fresh[at + same]:
                    same += 1
                leaf = self._split(child, same) if same < len(child.hashes) else child
                self._ref(leaf)
                self.private -= same
                self.blank += same
                at += same
                continue
            rest = list(fresh[at:])
            self.private -= len(rest)
            if self.listener is not None:
                parent = leaf.hashes[-1] if leaf.hashes else None
                self.listener("stored", rest, parent)
            if leaf.refs == 1 and not leaf.children and leaf is not self.root:
                leaf.hashes.extend(rest)
                return leaf
            node = Node(leaf, rest)
            node.refs = 1
            leaf.children[rest[0]] = node
            return node
        return leaf

    def release(self, leaf: Node, private: int) -> None:
        """A request ends: its hashed blocks become free tail first, the others blank."""
        self.private -= private
        self.blank += private
        node: Node | None = leaf
        while node is not None and node is not self.root:
            node.refs -= 1
            if node.refs == 0:
                self.queue[node] = None
                self.cached_free += len(node.hashes)
            node = node.parent

    def clear(self) -> None:
        """Everything is lost."""
        self.blank = self.total
        self.cached_free = self.private = 0
        self.root = Node(None, [])
        self.queue.clear()

    # -- the law

    def check(self) -> None:
        """Blocks are conserved, the queue is what nobody refers to, parents are referred to at least as often."""
        hashed = free = 0
        stack = [self.root]
        reached: set[Node] = set()
        while stack:
            node = stack.pop()
            for first, child in node.children.items():
                if child.parent is not node or not child.hashes or child.hashes[0] != first:
                    raise InvariantBroken("a node is not where its parent says")
                if node is not self.root and child.refs > 0 and node.refs < child.refs:
                    raise InvariantBroken("a child is referred to more often than its parent")
                reached.add(child)
                hashed += len(child.hashes)
                if child.refs == 0:
                    free += len(child.hashes)
                    if child not in self.queue:
                        raise InvariantBroken("a free node is not in the queue")
                stack.append(child)
        for node in self.queue:
            if node.refs or node not in reached:
                raise InvariantBroken("the queue holds a node that is referred to or lost")
        order = {node: i for i, node in enumerate(self.queue)}
        for node, place in order.items():
            if node.parent in order and order[node.parent] < place:
                raise InvariantBroken("a parent would be evicted before its child")
        if free != self.cached_free or self.blank + self.private + hashed != self.total:
            raise InvariantBroken(
                f"{self.blank} blank, {self.private} private and {hashed} hashed blocks are not {self.total}"
            )
        if min(self.blank, self.private, self.cached_free) < 0:
            raise InvariantBroken("a count of blocks is negative")
