"""An emulated inference engine: continuous batching over a paged KV pool, driven by a clock that others own.

Rule: sans-IO. `submit` and `abort` say what happened, `advance(now)` gives everything that came of it up to now, and
the answer does not depend on how often it is asked. The scheduler is vLLM V1's: running requests first, each decode
one token and each unfinished prefill a chunk, then the waiting; a token budget for each iteration; when blocks run
out, the last comer (or the worst priority) is preempted and computed again.

While all running requests decode and nothing that waits can be admitted, many iterations are taken in one step in
closed form: their times are an arithmetic series.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from agentserve.engine.blocks import BlockPool, Node
from agentserve.engine.events import (
    EngineEvent,
    EngineRequest,
    EngineStats,
    FirstToken,
    KvRemoved,
    KvStored,
    KvUse,
    Preempted,
    RequestFinished,
    RequestRejected,
    RequestStarted,
)
from agentserve.engine.profile import Profile
from agentserve.errors import InvariantBroken


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The flags of a server."""

    block_size: int = 16
    kv_tokens: int | None = None  # None: what the profile's memory leaves
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    policy: Literal["fcfs", "priority"] = "fcfs"
    kv_events: bool = False
    host_kv_tokens: int = 0  # second tier in host memory
    host_bandwidth: float = 50e9  # bytes a second, host to device
    pin_share_max: float = 0.8  # of the pool, for native pins
    fast_forward: bool = True


@dataclass(slots=True, eq=False)
class Inside:
    """A request inside the engine."""

    request: EngineRequest
    order: int
    submitted_at: float
    leaf: Node
    computed: int = 0  # tokens whose KV is there
    done: int = 0  # output tokens made
    target: int = (
        0  # tokens to compute before the next output token: prompt, and output made before a preemption
    )
    hashed: int = 0  # blocks on the path to `leaf`
    private: int = 0  # blocks of its own beyond those
    cached: int = -1  # prompt tokens found at first admission
    started_at: float = -1.0
    preemptions: int = 0
    aborted: bool = False

    @property
    def key(self) -> tuple[int, int]:
        return (self.request.priority, self.order)


@dataclass(slots=True)
class Window:
    """What the engine is doing: one iteration, or `count` decode iterations in a row."""

    start: float
    end: float
    count: int
    chunks: list[tuple[Inside, int]] = field(default_factory=list)  # a single iteration's share of each
    base_s: float = 0.0  # a decode iteration without the KV of its context
    per_token_s: float = 0.0
    context: int = 0


class EmulatedEngine:
    """One engine."""

    def __init__(self, *, profile: Profile, config: EngineConfig | None = None) -> None:
        self.profile = profile
        self.config = config or EngineConfig()
        tokens = profile.kv_tokens() if self.config.kv_tokens is None else self.config.kv_tokens
        self.block = self.config.block_size
        self.pool = BlockPool(tokens // self.block, self._listen)
        self._running: list[Inside] = []
        self._waiting: deque[Inside] | list[Inside] = deque()
        self._by_id: dict[str, Inside] = {}
        self._window: Window | None = None
        self._events: list[EngineEvent] = []
        self._now = 0.0
        self._order = 0
        self._speed = 1.0
        self._stalled_until = 0.0
        self._host: OrderedDict[int, None] = OrderedDict()
        self._host_blocks = self.config.host_kv_tokens // self.block
        self._pins: dict[str, tuple[Node, float, int]] = {}
        self._stats = EngineStats()
        if self.config.policy == "priority":
            self._waiting = []

    # -- what others do to it

    @property
    def kv_tokens(self) -> int:
        return self.pool.total * self.block

    def submit(self, request: EngineRequest, now: float) -> None:
        """A request arrives; it joins at the next iteration boundary."""
        if request.id in self._by_id:
            raise ValueError(f"request {request.id} is already here")
        self._run(now)
        need = -(-(request.prompt_tokens + request.output_tokens) // self.block)
        if need > self.pool.total or request.prompt_tokens < 1 or request.output_tokens < 1:
            reason = "too_long" if need > self.pool.total else "empty"
            self._events.append(RequestRejected(id=request.id, at=now, reason=reason))
            return
        self._order += 1
        sequence = Inside(request, self._order, now, self.pool.root, target=request.prompt_tokens)
        self._by_id[request.id] = sequence
        blocked = bool(self._waiting) and self.config.policy == "fcfs"
        self._enqueue(sequence)
        if self._window is None:
            self._begin(max(now, self._stalled_until))
        elif not blocked:
            self._truncate(now)

    def abort(self, request_id: str, now: float) -> bool:
        """Its client is gone. Whether it was here."""
        self._run(now)
        sequence = self._by_id.get(request_id)
        if sequence is None or sequence.aborted:
            return False
        self._stats.aborted += 1
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            del self._by_id[request_id]
            return True
        sequence.aborted = True
        self._truncate(now)
        return True

    def crash(self, now: float) -> list[str]:
        """Everything is lost; the ids of the requests that were here."""
        self._run(now)
        lost = list(self._by_id)
        self._by_id.clear()
        self._running.clear()
        self._waiting.clear()
        self._pins.clear()
        self._host.clear()
        self._window = None
        self.pool.clear()
        return lost

    def stall(self, until: float, now: float | None = None) -> None:
        """Nothing moves until then."""
        at = self._now if now is None else now
        self._run(at)
        self._stalled_until = max(self._stalled_until, until)
        if self._window is not None and until > at:
            self._window.start += until - at
            self._window.end += until - at

    def set_speed(self, factor: float) -> None:
        """How fast this engine is beside its profile, from the next iteration on."""
        self._truncate(self._now)
        self._speed = factor

    def pin(self, name: str, hashes: Sequence[int], until: float, now: float) -> int:
        """Hold what is cached of this prefix until then; the tokens held, clipped to the budget."""
        self._run(now)
        self.unpin(name, now)
        held = sum(count for _, _, count in self._pins.values())
        budget = int(self.config.pin_share_max * self.pool.total) - held
        self._truncate(now)
        budget = min(budget, self.pool.free - self._promised())
        path, count = self.pool.match(hashes, min(len(hashes), max(budget, 0)))
        if not count:
            return 0
        self._pins[name] = (self.pool.take(path), until, count)
        return count * self.block

    def touch(self, hashes: Sequence[int], now: float) -> int:
        """Make what is cached of this prefix the most recently used, at no cost; the tokens touched."""
        self._run(now)
        path, count = self.pool.match(hashes, len(hashes))
        self.pool.release(self.pool.take(path), 0)
        return count * self.block

    def _promised(self) -> int:
        """Blocks that the decode run under way has still to take."""
        window = self._window
        if window is None or window.chunks:
            return 0
        ahead = [-(-(s.computed + window.count) // self.block) - s.hashed - s.private for s in self._running]
        return sum(n for n in ahead if n > 0)

    def unpin(self, name: str, now: float) -> None:
        """Let it go."""
        self._run(now)
        pin = self._pins.pop(name, None)
        if pin is not None:
            self.pool.release(pin[0], 0)

    # -- what others ask of it

    def advance(self, now: float) -> list[EngineEvent]:
        """Everything that happened up to and including now, in order."""
        self._run(now)
        events, self._events = self._events, []
        return events

    def next_event(self) -> float | None:
        """When something may happen next if nothing else is submitted; None when idle."""
        if self._events:
            return self._now
        return None if self._window is None else self._window.end

    def tokens_done(self, request_id: str, now: float) -> int:
        """Output tokens made by now of a request that is here."""
        self._run(now)
        sequence = self._by_id[request_id]
        window = self._window
        if window is not None and window.count and sequence in self._running and not window.chunks:
            return sequence.done + self._iterations_by(window, now)
        return sequence.done

    def resident_tokens(self, hashes: Sequence[int]) -> int:
        """How much of this prefix could be hit now."""
        return self.pool.resident(hashes) * self.block

    def running(self) -> int:
        return len(self._running)

    def waiting(self) -> int:
        return len(self._waiting)

    def kv_use(self) -> KvUse:
        """What the pool is used for now."""
        pinned = sum(count for _, _, count in self._pins.values())
        return KvUse(
            running_tokens=self.pool.referred * self.block,
            idle_tokens=self.pool.cached_free * self.block,
            blank_tokens=self.pool.blank * self.block,
            pinned_tokens=pinned * self.block,
        )

    def stats(self, now: float) -> EngineStats:
        """Counters up to now."""
        self._run(now)
        return replace(self._stats, evicted_tokens=self.pool.evicted * self.block)

    def check(self) -> None:
        """Every invariant of engine and pool."""
        self.pool.check()
        refs: dict[Node, int] = {}
        leaves = [s.leaf for s in self._running] + [leaf for leaf, _, _ in self._pins.values()]
        for leaf in leaves:
            node: Node | None = leaf
            while node is not None and node is not self.pool.root:
                refs[node] = refs.get(node, 0) + 1
                node = node.parent
        for node, count in refs.items():
            if node.refs != count:
                raise InvariantBroken(f"a node counts {node.refs} references and has {count}")
        if sum(s.private for s in self._running) != self.pool.private:
            raise InvariantBroken("private blocks do not add up")
        for sequence in self._running:
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
        if set(self._by_id.values()) != set(self._running) | set(self._waiting):
            raise InvariantBroken("a request is lost")

    # -- the clock

    def _run(self, now: float) -> None:
        """Complete every window that ends by now."""
        while self._window is not None and self._window.end <= now:
            window = self._window
            self._window = None
            self._complete(window)
            # pins end at iteration boundaries, so that it does not matter when one looks
            self._expire_pins(window.end)
            self._begin(max(window.end, self._stalled_until))
        if self._window is None:
            self._expire_pins(now)
        self._now = max(self._now, now)

    def _enqueue(self, sequence: Inside, *, head: bool = False) -> None:
        waiting = self._waiting
        if isinstance(waiting, deque):
            if head:
                waiting.appendleft(sequence)
            else:
                waiting.append(sequence)
        else:
            bisect.insort(waiting, sequence, key=lambda s: s.key)

    def _begin(self, start: float) -> None:
        """Plan the next iteration, or a run of decode iterations."""
        chunks, preempted, load_s = self._schedule(start)
        if not chunks:
            if self._running or self._waiting:
                self._break_deadlock(start)
            return
        prefill = []
        decoding = 0
        context = 0
        for sequence, n in chunks:
            if n == 1 and sequence.target - sequence.computed == 1 and sequence.done > 0:
                decoding += 1
                context += sequence.computed
            else:
                prefill.append((n, sequence.computed))
        pure = not prefill and decoding == len(self._running) and not preempted and not load_s
        if pure and self.config.fast_forward:
            count = self._decode_run()
            if count > 1:
                self._begin_decode_run(start, count, context)
                return
        took = self.profile.iteration_s(prefill=prefill, decodes=decoding, decode_context=context) + load_s
        self._window = Window(start, start + took / self._speed, 1, chunks)

    def _begin_decode_run(self, start: float, count: int, context: int) -> None:
        sequences = len(self._running)
        shape = self.profile
        base = (shape.linear_s(sequences) + shape.overhead_s) / self._speed
        per_token = shape.kv_read_s_per_token() / self._speed
        window = Window(start, 0.0, count, [], base, per_token, context)
        window.end = start + self._duration(window, count)
        self._window = window

    def _duration(self, window: Window, count: int) -> float:
        """Of the first `count` iterations of a decode run: an arithmetic series, as each adds a token a sequence."""
        growth = len(self._running) * count * (count - 1) / 2
        return count * window.base_s + window.per_token_s * (window.context * count + growth)

    def _iterations_by(self, window: Window, now: float, *, up: bool = False) -> int:
        """How many iterations of a decode run are complete at `now`; `up` counts the one under way as well."""
        elapsed = now - window.start
        if elapsed <= 0:
            return 1 if up else 0
        a = window.per_token_s * len(self._running) / 2
        b = window.base_s + window.per_token_s * window.context - a
        guess = int((-b + math.sqrt(b * b + 4 * a * elapsed)) / (2 * a)) if a > 0 else int(elapsed / b)
        count = max(0, min(guess, window.count))
        while count < window.count and self._duration(window, count + 1) <= elapsed:
            count += 1
        while count > 0 and self._duration(window, count) > elapsed:
            count -= 1
        if up and self._duration(window, count) < elapsed:
            count += 1
        return min(max(count, 1) if up else count, window.count)

    def _truncate(self, now: float) -> None:
        """Something changed: a decode run ends with the iteration that is under way."""
        window = self._window
        if window is None or window.chunks:
            return
        count = self._iterations_by(window, now, up=True)
        if count < window.count:
            window.count = count
            window.end = window.start + self._duration(window, count)

    def _decode_run(self) -> int:
        """How many decode iterations can be taken at once: to the first finish, or while blocks last."""
        block = self.block
        count = min(s.request.output_tokens - s.done for s in self._running)
        slack = [(s.hashed + s.private) * block - s.computed for s in self._running]
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
        for sequence in self._running:
            if sequence.hashed >= len(sequence.request.hashes):
                continue
            following = sequence.request.hashes[sequence.hashed]
            if following in seen or following in sequence.leaf.children:
                fewest = min(fewest, (sequence.hashed + 1) * self.block - sequence.computed)
            seen.add(following)
        return max(fewest, 1)

    # -- planning an iteration

    def _schedule(self, now: float) -> tuple[list[tuple[Inside, int]], bool, float]:
        """vLLM's order: the running, then the waiting. Chunks, whether any was preempted, seconds of host loading."""
        budget = self.config.max_num_batched_tokens
        chunks: list[tuple[Inside, int]] = []
        preempted = False
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            n = min(sequence.target - sequence.computed, budget)
            while not self._grow(sequence, n):
                victim = self._victim()
                preempted = True
                self._preempt(victim, now)
                chunks = [c for c in chunks if c[0] is not victim]
                if victim is sequence:
                    break
            else:
                chunks.append((sequence, n))
                budget -= n
                index = self._running.index(sequence) + 1 if preempted else index + 1
                continue
            index = min(index, len(self._running))
        load_s = 0.0
        if not preempted:
            load_s = self._admit(chunks, budget, now)
        return chunks, preempted, load_s

    def _grow(self, sequence: Inside, n: int) -> bool:
        need = -(-(sequence.computed + n) // self.block) - sequence.hashed - sequence.private
        if need <= 0:
            return True
        if not self.pool.allocate(need):
            return False
        sequence.private += need
        return True

    def _admit(self, chunks: list[tuple[Inside, int]], budget: int, now: float) -> float:
        load_s = 0.0
        waiting = self._waiting
        while waiting and budget > 0 and len(self._running) < self.config.max_num_seqs:
            sequence = waiting[0]
            request = sequence.request
            limit = min((sequence.target - 1) // self.block, len(request.hashes))
            path, hit = self.pool.match(request.hashes, limit)
            host = self._host_hits(request.hashes, hit, limit)
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
                sequence.leaf = self.pool.store(sequence.leaf, request.hashes[hit:total])
                sequence.hashed = total
                sequence.private -= host
                load_s += (
                    host * self.block * self.profile.model.kv_bytes_per_token / self.config.host_bandwidth
                )
                self._stats.host_hit_tokens += host * self.block
            sequence.computed = total * self.block
            self._note_admission(sequence, hit, host, now)
            self._running.append(sequence)
            chunks.append((sequence, n))
            budget -= n
        return load_s

    def _note_admission(self, sequence: Inside, hit: int, host: int, now: float) -> None:
        self._stats.query_tokens += sequence.target
        self._stats.hit_tokens += hit * self.block
        if sequence.cached < 0:
            sequence.cached = (hit + host) * self.block
            sequence.started_at = now
            self._events.append(
                RequestStarted(
                    id=sequence.request.id,
                    at=now,
                    cached_tokens=sequence.cached,
                    cached_host_tokens=host * self.block,
                )
            )

    def _host_hits(self, hashes: Sequence[int], start: int, limit: int) -> int:
        if not self._host:
            return 0
        count = 0
        while start + count < limit and hashes[start + count] in self._host:
            self._host.move_to_end(hashes[start + count])
            count += 1
        return count

    def _victim(self) -> Inside:
        if self.config.policy == "priority":
            return max(self._running, key=lambda s: s.key)
        return self._running[-1]

    def _preempt(self, victim: Inside, now: float) -> None:
        self._running.remove(victim)
        self.pool.release(victim.leaf, victim.private)
        victim.leaf = self.pool.root
        victim.hashed = victim.private = victim.computed = 0
        victim.target = victim.request.prompt_tokens + victim.done
        victim.preemptions += 1
        self._stats.preemptions += 1
        self._events.append(Preempted(id=victim.request.id, at=now))
        if victim.aborted:
            del self._by_id[victim.request.id]
            return
        self._enqueue(victim, head=True)

    def _break_deadlock(self, now: float) -> None:
        """Nothing can run: only pins can be in the way. The one that ends first goes."""
        if not self._pins:
            raise InvariantBroken("requests wait, nothing runs, and nothing is pinned")
        name = min(self._pins, key=lambda p: (self._pins[p][1], p))
        self.pool.release(self._pins.pop(name)[0], 0)
        self._begin(now)

    def _expire_pins(self, now: float) -> None:
        if self._pins:
            due = sorted((until, name) for name, (_, until, _) in self._pins.items() if until <= now)
            for _, name in due:
                self.pool.release(self._pins.pop(name)[0], 0)

    # -- completing

    def _complete(self, window: Window) -> None:
        """The window's iterations are done: tokens are out, blocks are full, some requests are over."""
        took = window.end - window.start
        stats = self._stats
        stats.busy_s += took
        stats.iterations += window.count
        stats.running_token_s += took * self.pool.referred * self.block
        stats.idle_token_s += took * self.pool.cached_free * self.block
        self._now = window.end
        if window.chunks:
            for sequence, n in window.chunks:
                self._computed(sequence, n, window.end)
        else:
            for sequence in self._running:
                self._grow(sequence, window.count)
                sequence.done += window.count - 1
                stats.decoded_tokens += window.count - 1
                sequence.target += window.count - 1
                self._computed(sequence, window.count, window.end)
        over = [s for s in self._running if s.aborted or s.done >= s.request.output_tokens]
        for sequence in over:
            self._leave(sequence, window.end)

    def _computed(self, sequence: Inside, n: int, now: float) -> None:
        sequence.computed += n
        full = min(sequence.computed // self.block, len(sequence.request.hashes))
        if full > sequence.hashed:
            fresh = sequence.request.hashes[sequence.hashed : full]
            sequence.leaf = self.pool.store(sequence.leaf, fresh)
            sequence.private -= full - sequence.hashed
            sequence.hashed = full
        if sequence.computed < sequence.target:
            self._stats.prefilled_tokens += n
            return
        if sequence.done == 0:
            self._stats.prefilled_tokens += n
            self._events.append(FirstToken(id=sequence.request.id, at=now))
        sequence.done += 1
        sequence.target = sequence.request.prompt_tokens + sequence.done
        self._stats.decoded_tokens += 1

    def _leave(self, sequence: Inside, now: float) -> None:
        self._running.remove(sequence)
        self.pool.release(sequence.leaf, sequence.private)
        del self._by_id[sequence.request.id]
        if sequence.aborted:
            return
        self._stats.finished += 1
        self._events.append(
            RequestFinished(
                id=sequence.request.id,
                at=now,
                prompt_tokens=sequence.request.prompt_tokens,
                output_tokens=sequence.request.output_tokens,
                cached_tokens=sequence.cached,
                queue_s=sequence.started_at - sequence.submitted_at,
                preemptions=sequence.preemptions,
            )
        )

    def _listen(self, kind: str, hashes: Iterable[int], parent: int | None) -> None:
        if self._host_blocks and kind == "removed":
            for block in hashes:
                self._host[block] = None
            while len(self._host) > self._host_blocks:
                self._host.popitem(last=False)
        if not self.config.kv_events:
            return
        if kind == "stored":
            self._events.append(KvStored(hashes=tuple(hashes), parent=parent, at=self._now))
        else:
            self._events.append(KvRemoved(hashes=tuple(hashes), at=self._now))
