"""The requests inside an engine: who runs, who waits, and what the next iteration computes.

Rule: vLLM V1's order. Running requests first, each decode one token and each unfinished prefill a chunk, then the
waiting; a token budget for each iteration; when blocks run out, the last comer (or the worst priority) is preempted and
computed again. Nothing here knows how long an iteration takes.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agentserve.engine.blocks import BlockPool, Node
from agentserve.engine.config import EngineConfig
from agentserve.engine.events import (
    EngineEvent,
    EngineRequest,
    EngineStats,
    Preempted,
    RequestAborted,
    RequestStarted,
)
from agentserve.engine.tier import HostTier
from agentserve.errors import InvariantBroken


@dataclass(slots=True, eq=False)
class Inside:
    """A request inside the engine."""

    request: EngineRequest
    order: int
    submitted_at: float
    leaf: Node
    computed: int = 0  # tokens whose KV is there
    done: int = 0  # output tokens made
    # tokens to compute before the next output token: prompt, and output made before a preemption
    target: int = 0
    hashed: int = 0  # blocks on the path to `leaf`
    private: int = 0  # blocks of its own beyond those
    cached: int = -1  # prompt tokens found at first admission
    started_at: float = -1.0
    token_at: float = -1.0  # when its latest token was out
    preemptions: int = 0
    aborted: bool = False

    @property
    def key(self) -> tuple[int, int]:
        return (self.request.priority, self.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What the next iteration does."""

    chunks: list[tuple[Inside, int]]  # tokens of each request
    preempted: bool
    host_blocks: int  # to load from host memory first


class Batch:
    """Every request of one engine, running or waiting."""

    def __init__(
        self,
        *,
        config: EngineConfig,
        pool: BlockPool,
        tier: HostTier,
        stats: EngineStats,
        say: Callable[[EngineEvent], None],
    ) -> None:
        self.config = config
        self.block = config.block_size
        self.pool = pool
        self.tier = tier
        self.stats = stats
        self.say = say
        self.running: list[Inside] = []
        self.waiting: deque[Inside] | list[Inside] = [] if config.policy == "priority" else deque()
        self.by_id: dict[str, Inside] = {}
        self.storing: tuple[Inside, int] | None = None  # whose blocks enter the pool now, and up to which
        self._order = 0

    # -- who is here

    def add(self, request: EngineRequest, now: float) -> None:
        """A request waits, behind those before it."""
        self._order += 1
        sequence = Inside(request, self._order, now, self.pool.root, target=request.prompt_tokens)
        self.by_id[request.id] = sequence
        self._wait(sequence)

    def abort(self, sequence: Inside) -> bool:
        """Its client is gone. True if it only waited; one that runs leaves with the iteration under way."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            del self.by_id[sequence.request.id]
            return True
        sequence.aborted = True
        return False

    def leave(self, sequence: Inside) -> None:
        """It is over."""
        self.running.remove(sequence)
        self.pool.release(sequence.leaf, sequence.private)
        del self.by_id[sequence.request.id]

    def clear(self) -> list[str]:
        """Everything is lost; the ids of the requests that were here."""
        lost = list(self.by_id)
        self.by_id.clear()
        self.running.clear()
        self.waiting.clear()
        return lost

    def _wait(self, sequence: Inside, *, head: bool = False) -> None:
        waiting = self.waiting
        if isinstance(waiting, deque):
            if head:
                waiting.appendleft(sequence)
            else:
                waiting.append(sequence)
        else:
            bisect.insort(waiting, sequence, key=lambda s: s.key)

    # -- the next iteration

    def plan(self, now: float) -> Iteration:
        """Chunks for the running, then for as many of the waiting as fit."""
        budget = self.config.max_num_batched_tokens
        chunks: list[tuple[Inside, int]] = []
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            n = min(sequence.target - sequence.computed, budget)
            while not self.grow(sequence, n):
                victim = self._victim()
                preempted = True
                self._preempt(victim, now)
                chunks = [c for c in chunks if c[0] is not victim]
                if victim is sequence:
                    break
            else:
                chunks.append((sequence, n))
                budget -= n
                index = self.running.index(sequence) + 1 if preempted else index + 1
                continue
            index = min(index, len(self.running))
        host_blocks = 0 if preempted else self._admit(chunks, budget, now)
        return Iteration(chunks=chunks, preempted=preempted, host_blocks=host_blocks)

    def grow(self, sequence: Inside, n: int) -> bool:
        """Blocks for `n` more tokens; False if there are too few."""
        need = -(-(sequence.computed + n) // self.block) - sequence.hashed - sequence.private
        if need <= 0:
            return True
        if not self.pool.allocate(need):
            return False
        sequence.private += need
        return True

    def _admit(self, chunks: list[tuple[Inside, int]], budget: int, now: float) -> int:
        host_blocks = 0
        waiting = self.waiting
        while waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            sequence = waiting[0]
            request = sequence.request
            limit = min((sequence.target - 1) // self.block, len(request.hashes))
            path, hit = self.pool.match(request.hashes, limit)
            host = self.tier.hits(request.hashes, hit, limit)
            total = hit + host
            n = min(sequence.target - total * self.block, budget)
            need = -(-(total * self.block + n) // self.block) - hit
            free_hit = sum(same for node, same in path if node.refs == 0)
            if need > self.pool.free - free_hit:
                break
            if isinstance(waiting, deque):
                waiting.popleft()
            else:
                del waiting[0]
            sequence.leaf = self.pool.take(path)
            sequence.hashed = hit
            self.pool.allocate(need)
            sequence.private = need
            if host:
                self.store(sequence, total)
                host_blocks += host
                self.stats.host_hit_tokens += host * self.block
            sequence.computed = total * self.block
            self._note_admission(sequence, hit, host, now)
            self.running.append(sequence)
            chunks.append((sequence, n))
            budget -= n
        return host_blocks

    def _note_admission(self, sequence: Inside, hit: int, host: int, now: float) -> None:
        self.stats.query_tokens += sequence.target
        self.stats.hit_tokens += hit * self.block
        if sequence.cached < 0:
            sequence.cached = (hit + host) * self.block
            sequence.started_at = now
            self.say(
                RequestStarted(
                    id=sequence.request.id,
                    at=now,
                    cached_tokens=sequence.cached,
                    cached_host_tokens=host * self.block,
                )
            )

    def _victim(self) -> Inside:
        if self.config.policy == "priority":
            return max(self.running, key=lambda s: s.key)
        return self.running[-1]

    def _preempt(self, victim: Inside, now: float) -> None:
        self.running.remove(victim)
        self.pool.release(victim.leaf, victim.private)
        victim.leaf = self.pool.root
        victim.hashed = victim.private = victim.computed = 0
        victim.target = victim.request.prompt_tokens + victim.done
        victim.preemptions += 1
        self.stats.preemptions += 1
        self.say(Preempted(id=victim.request.id, at=now))
        if victim.aborted:
            del self.by_id[victim.request.id]
            self.say(RequestAborted(id=victim.request.id, at=now))
            return
        self._wait(victim, head=True)

    # -- many decode iterations at once

    def decode_run(self) -> int:
        """How many decode iterations can be taken at once: to the first finish, or while blocks last."""
        block = self.block
        count = min(s.request.output_tokens - s.done for s in self.running)
        slack = [(s.hashed + s.private) * block - s.computed for s in self.running]
        free = self.pool.free

        def need(k: int) -> int:
            return sum(-(-(k - room) // block) for room in slack if k > room)

        if need(count) > self.pool.blank:
            count = min(count, self._to_adoption())
        if need(count) > free:
            low, high = 0, count
            while high - low > 1:
                middle = (low + high) // 2
                if need(middle) <= free:
                    low = middle
                else:
                    high = middle
            count = low
        return count

    def _to_adoption(self) -> int:
        """Iterations to the first block that a request fills and finds computed by another.

        It then gives a block back, which spares an eviction, so a decode run that has to evict ends there.
        """
        seen: set[int] = set()
        fewest = 1 << 60
        for sequence in self.running:
            if sequence.hashed >= len(sequence.request.hashes):
                continue
            following = sequence.request.hashes[sequence.hashed]
            if following in seen or following in sequence.leaf.children:
                fewest = min(fewest, (sequence.hashed + 1) * self.block - sequence.computed)
            seen.add(following)
        return max(fewest, 1)

    def promised(self, iterations: int) -> int:
        """Blocks that the running will take within so many decode iterations."""
        ahead = [-(-(s.computed + iterations) // self.block) - s.hashed - s.private for s in self.running]
        return sum(n for n in ahead if n > 0)

    # -- blocks that became full

    def store(self, sequence: Inside, full: int) -> None:
        """Its blocks up to `full` are computed, or loaded: they can be hit from now on."""
        self.storing = (sequence, full)
        fresh = sequence.request.hashes[sequence.hashed : full]
        sequence.leaf = self.pool.store(sequence.leaf, fresh)
        sequence.private -= full - sequence.hashed
        sequence.hashed = full

    # -- the law

    def check(self) -> None:
        """Blocks add up, and no request is lost."""
        if sum(s.private for s in self.running) != self.pool.private:
            raise InvariantBroken("private blocks do not add up")
        for sequence in self.running:
            depth = 0
            walk: Node | None = sequence.leaf
            while walk is not None:
                depth += len(walk.hashes)
                walk = walk.parent
            if depth != sequence.hashed:
                raise InvariantBroken(
                    f"{sequence.request.id} is {sequence.hashed} blocks deep, the tree says {depth}"
                )
            if (sequence.hashed + sequence.private) * self.block < sequence.computed:
                raise InvariantBroken(f"{sequence.request.id} computed more than it has blocks for")
        if set(self.by_id.values()) != set(self.running) | set(self.waiting):
            raise InvariantBroken("a request is lost")
