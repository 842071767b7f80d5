"""An emulated inference engine: continuous batching over a paged KV pool, driven by a clock that others own.

Rule: sans-IO. `submit` and `abort` say what happened, `advance(now)` gives everything that came of it up to now, and
the answer does not depend on how often it is asked. Who runs is `batch`'s to say, how long it takes the profile's.

While all running requests decode and nothing that waits can be admitted, many iterations are taken in one step in
closed form: their times are an arithmetic series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentserve.engine.batch import Batch, Inside
from agentserve.engine.blocks import BlockPool, Node
from agentserve.engine.config import EngineConfig
from agentserve.engine.events import (
    EngineEvent,
    EngineRequest,
    EngineStats,
    FirstToken,
    Iterated,
    KvCleared,
    KvRemoved,
    KvStored,
    KvUse,
    RequestAborted,
    RequestFinished,
    RequestRejected,
)
from agentserve.engine.pins import Pins
from agentserve.engine.profile import Profile
from agentserve.engine.tier import HostTier
from agentserve.engine.window import Window
from agentserve.errors import InvariantBroken


class EmulatedEngine:
    """One engine."""

    def __init__(self, *, profile: Profile, config: EngineConfig | None = None) -> None:
        self.profile = profile
        self.config = config or EngineConfig()
        tokens = profile.kv_tokens() if self.config.kv_tokens is None else self.config.kv_tokens
        self.block = self.config.block_size
        self.pool = BlockPool(tokens // self.block, self._listen)
        self.tier = HostTier(self.config.host_kv_tokens // self.block)
        self._stats = EngineStats()
        self._events: list[EngineEvent] = []
        self._batch = Batch(
            config=self.config, pool=self.pool, tier=self.tier, stats=self._stats, say=self._say
        )
        self._pins = Pins(self.pool, share_max=self.config.pin_share_max)
        self._window: Window | None = None
        self._now = 0.0
        self._speed = 1.0
        self._stalled_until = 0.0

    # -- what others do to it

    @property
    def kv_tokens(self) -> int:
        return self.pool.total * self.block

    def submit(self, request: EngineRequest, now: float) -> None:
        """A request arrives; it joins at the next iteration boundary."""
        batch = self._batch
        if request.id in batch.by_id:
            raise ValueError(f"request {request.id} is already here")
        self._run(now)
        need = -(-(request.prompt_tokens + request.output_tokens) // self.block)
        if need > self.pool.total or request.prompt_tokens < 1 or request.output_tokens < 1:
            reason = "too_long" if need > self.pool.total else "empty"
            self._say(RequestRejected(id=request.id, at=now, reason=reason))
            return
        blocked = bool(batch.waiting) and self.config.policy == "fcfs"
        batch.add(request, now)
        if self._window is None:
            self._begin(max(now, self._stalled_until))
        elif not blocked:
            self._window.truncate(now)

    def abort(self, request_id: str, now: float) -> bool:
        """Its client is gone. Whether it was here."""
        self._run(now)
        sequence = self._batch.by_id.get(request_id)
        if sequence is None or sequence.aborted:
            return False
        self._stats.aborted += 1
        if self._batch.abort(sequence):
            self._say(RequestAborted(id=request_id, at=now))
        elif self._window is not None:
            self._window.truncate(now)
        return True

    def crash(self, now: float) -> list[str]:
        """Everything is lost; the ids of the requests that were here."""
        self._run(now)
        self._pins.clear()
        self.tier.clear()
        self._window = None
        self.pool.clear()
        if self.config.kv_events:
            self._say(KvCleared(at=now))
        return self._batch.clear()

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
        if self._window is not None:
            self._window.truncate(self._now)
        self._speed = factor

    def pin(self, name: str, hashes: Sequence[int], until: float, now: float) -> int:
        """Hold what is cached of this prefix until then; the tokens held, clipped to the budget."""
        self.unpin(name, now)
        window = self._window
        if window is not None:
            window.truncate(now)
        # what the decode run under way has still to take is not there to be held
        promised = 0 if window is None or window.chunks else self._batch.promised(window.count)
        spare = self.pool.free - promised
        return self._pins.hold(name, hashes, until, spare=spare) * self.block

    def unpin(self, name: str, now: float) -> None:
        """Let it go."""
        self._run(now)
        self._pins.drop(name)

    def touch(self, hashes: Sequence[int], now: float) -> int:
        """Make what is cached of this prefix the most recently used, at no cost; the tokens touched."""
        self._run(now)
        path, count = self.pool.match(hashes, len(hashes))
        self.pool.release(self.pool.take(path), 0)
        return count * self.block

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
        sequence = self._batch.by_id[request_id]
        window = self._window
        if window is not None and not window.chunks and sequence in self._batch.running:
            return sequence.done + window.iterations_by(now)
        return sequence.done

    def resident_tokens(self, hashes: Sequence[int]) -> int:
        """How much of this prefix could be hit now."""
        return self.pool.resident(hashes) * self.block

    def running(self) -> int:
        return len(self._batch.running)

    def waiting(self) -> int:
        return len(self._batch.waiting)

    def kv_use(self) -> KvUse:
        """What the pool is used for now."""
        return KvUse(
            running_tokens=self.pool.referred * self.block,
            idle_tokens=self.pool.cached_free * self.block,
            blank_tokens=self.pool.blank * self.block,
            pinned_tokens=self._pins.blocks * self.block,
        )

    def stats(self, now: float) -> EngineStats:
        """Counters up to now."""
        self._run(now)
        return replace(self._stats, evicted_tokens=self.pool.evicted * self.block)

    def check(self) -> None:
        """Every invariant of engine and pool."""
        self.pool.check()
        refs: dict[Node, int] = {}
        for leaf in [*(s.leaf for s in self._batch.running), *self._pins.leaves]:
            node: Node | None = leaf
            while node is not None and node is not self.pool.root:
                refs[node] = refs.get(node, 0) + 1
                node = node.parent
        for node, count in refs.items():
            if node.refs != count:
                raise InvariantBroken(f"a node counts {node.refs} references and has {count}")
        if len(self.tier) > self.tier.total:
            raise InvariantBroken(f"host memory holds {len(self.tier)} blocks of {self.tier.total}")
        self._batch.check()

    # -- the clock

    def _say(self, event: EngineEvent) -> None:
        self._events.append(event)

    def _run(self, now: float) -> None:
        """Complete every window that ends by now."""
        while self._window is not None and self._window.end <= now:
            window = self._window
            self._window = None
            self._complete(window)
            # pins end at iteration boundaries, so that it does not matter when one looks
            self._pins.expire(window.end)
            self._begin(max(window.end, self._stalled_until))
        if self._window is None:
            self._pins.expire(now)
        self._now = max(self._now, now)

    def _begin(self, start: float) -> None:
        """Plan the next iteration, or a run of decode iterations."""
        batch = self._batch
        plan = batch.plan(start)
        if not plan.chunks:
            if batch.running or batch.waiting:
                # only pins can be in the way
                if not self._pins.drop_soonest():
                    raise InvariantBroken("requests wait, nothing runs, and nothing is pinned")
                self._begin(start)
            return
        prefill = []
        decoding = 0
        context = 0
        for sequence, n in plan.chunks:
            if n == 1 and sequence.target - sequence.computed == 1 and sequence.done > 0:
                decoding += 1
                context += sequence.computed
            else:
                prefill.append((n, sequence.computed))
        pure = not prefill and decoding == len(batch.running) and not plan.preempted and not plan.host_blocks
        if pure and self.config.fast_forward:
            count = batch.decode_run()
            if count > 1:
                self._begin_decode_run(start, count, context)
                return
        took = self.profile.iteration_s(prefill=prefill, decodes=decoding, decode_context=context)
        took += self._load_s(plan.host_blocks)
        self._window = Window(start, start + took / self._speed, 1, plan.chunks)

    def _begin_decode_run(self, start: float, count: int, context: int) -> None:
        sequences = len(self._batch.running)
        shape = self.profile
        window = Window(
            start,
            0.0,
            count,
            sequences=sequences,
            base_s=(shape.linear_s(sequences) + shape.overhead_s) / self._speed,
            per_token_s=shape.kv_read_s_per_token() / self._speed,
            context=context,
        )
        window.end = start + window.duration(count)
        self._window = window

    def _load_s(self, blocks: int) -> float:
        """Seconds that so many blocks need from host memory over the bus."""
        return blocks * self.block * self.profile.model.kv_bytes_per_token / self.config.host_bandwidth

    # -- completing

    def _complete(self, window: Window) -> None:
        """The window's iterations are done: tokens are out, blocks are full, some requests are over."""
        took = window.end - window.start
        stats = self._stats
        running = self._batch.running
        stats.busy_s += took
        stats.iterations += window.count
        stats.running_token_s += took * self.pool.referred * self.block
        stats.idle_token_s += took * self.pool.cached_free * self.block
        self._now = window.end
        if self.config.iteration_events:
            self._say_iterated(window)
        if window.chunks:
            for sequence, n in window.chunks:
                self._computed(sequence, n, window.end)
        else:
            for sequence in running:  # each has its blocks before any of them gives one back for another's
                self._batch.grow(sequence, window.count)
            for sequence in running:
                sequence.done += window.count - 1
                stats.decoded_tokens += window.count - 1
                sequence.target += window.count - 1
                self._computed(sequence, window.count, window.end)
        over = [s for s in running if s.aborted or s.done >= s.request.output_tokens]
        for sequence in over:
            self._leave(sequence, window.end)

    def _say_iterated(self, window: Window) -> None:
        """What a server's histograms are made of, before the tokens are counted."""
        share = (window.end - window.start) / window.count
        if window.chunks:
            ready = [s for s, n in window.chunks if s.computed + n == s.target]
            made = [s for s in ready if s.done > 0]
            # a prefill that ends gives its first token with it
            tokens = sum(n for _, n in window.chunks) + len(ready) - len(made)
        else:
            made = self._batch.running
            tokens = len(made)
        first = window.start + share
        self._say(
            Iterated(
                at=window.end,
                count=window.count,
                tokens=tokens,
                gaps_s=tuple(first - s.token_at for s in made),
                gap_s=share,
            )
        )

    def _computed(self, sequence: Inside, n: int, now: float) -> None:
        sequence.computed += n
        full = min(sequence.computed // self.block, len(sequence.request.hashes))
        if full > sequence.hashed:
            self._batch.store(sequence, full)
        if sequence.computed < sequence.target:
            return
        if sequence.done == 0:
            self._say(FirstToken(id=sequence.request.id, at=now))
        sequence.done += 1
        sequence.token_at = now
        sequence.target = sequence.request.prompt_tokens + sequence.done
        self._stats.decoded_tokens += 1

    def _leave(self, sequence: Inside, now: float) -> None:
        self._batch.leave(sequence)
        if sequence.aborted:
            self._say(RequestAborted(id=sequence.request.id, at=now))
            return
        self._stats.finished += 1
        self._say(
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

    # -- the pool's news

    def _listen(self, kind: str, hashes: Sequence[int], parent: int | None) -> None:
        if kind == "removed":
            self._removed(hashes)
        elif self.config.kv_events:
            storing = self._batch.storing
            assert storing is not None
            sequence, full = storing
            self._say(
                KvStored(
                    hashes=tuple(hashes),
                    parent=parent,
                    at=self._now,
                    request=sequence.request.id,
                    first=full - len(hashes),
                )
            )

    def _removed(self, hashes: Sequence[int]) -> None:
        gone: list[int] = []
        if self.tier.total:
            gone = self.tier.keep(hashes)
        if not self.config.kv_events:
            return
        self._say(KvRemoved(hashes=tuple(hashes), at=self._now))
        if self.tier.total:
            # in the host's order: the deepest block entered first
            self._say(KvStored(hashes=tuple(hashes), parent=None, at=self._now, medium="CPU"))
            if gone:
                self._say(KvRemoved(hashes=tuple(gone), at=self._now, medium="CPU"))
