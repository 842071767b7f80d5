"""DualMap: two hashed candidates for every prompt, the warmer unless it would break the TTFT objective.

Intent: cache affinity and load balance at once: equal prefixes meet on the same two engines of many.
Reads: shared prefixes, residency, prefill speed and what prefill each engine still has before it.

The key of a step is the hash of its leading segments, as deep as they are hot: deeper where a prefix has more than
2/n of the recent traffic, less deep where it has less than 1/n (n engines). Two independent hash rings give two
candidates; the one with more of the prompt cached takes it, and the less loaded only if the warmer's predicted TTFT
breaks `ttft_slo_s`. A queued step moves to its other candidate when that gains it TTFT.

Loses: it admits all that comes: with contexts beyond the memory the two candidates thrash as one engine would.
TTFT is its objective, a program's end is nobody's.

Departs: blocks of 512 tokens are the segments that programs share here; below the last of them a program's own name
stands for its own text. One move of a queued step at an event, not all at once.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass

from cachetools import LRUCache

from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId
from agentserve.core.policies.literature.lines import Owed
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.program import Step

PREFIXES_MAX = 8192
POINTS = 64  # of each engine on a ring


@dataclass(frozen=True, slots=True, kw_only=True)
class DualMapParams(QueueingParams):
    """The paper's objective; `memory_steps` is over how many steps traffic is counted."""

    ttft_slo_s: float = 5.0
    memory_steps: float = 1000.0


@dataclass(slots=True)
class Heat:
    """How much of the traffic begins with a prefix."""

    count: float = 0.0  # of steps, the older the less
    at: float = 0.0  # when it was brought up, in steps
    split: bool = False  # hot: its steps are told apart by what follows


class Ring:
    """Consistent hashing: an engine that comes or goes moves only its own keys."""

    __slots__ = ("_names", "_points", "_salt")

    def __init__(self, salt: str, engines: tuple[EngineId, ...]) -> None:
        self._salt = salt
        marks = sorted((self._hash(f"{e}#{i}"), e) for e in engines for i in range(POINTS))
        self._points = [m[0] for m in marks]
        self._names = [m[1] for m in marks]

    def _hash(self, text: str) -> int:
        digest = hashlib.blake2b(f"{self._salt}:{text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def find(self, key: str, without: EngineId | None = None) -> EngineId:
        """The first engine from the key on, other than `without` if there is another."""
        start = bisect_left(self._points, self._hash(key))
        for i in range(len(self._names)):
            name = self._names[(start + i) % len(self._names)]
            if name != without:
                return name
        return self._names[0]


class DualMap(Queueing):
    """Two rings, the warmer of two."""

    name = "dualmap"
    reason = "two_candidates"
    Params = DualMapParams
    params: DualMapParams

    def setup(self) -> None:
        super().setup()
        self._heat: LRUCache[int, Heat] = LRUCache(PREFIXES_MAX)
        self._steps_seen = 0.0
        self._rings: tuple[tuple[EngineId, ...], Ring, Ring] | None = None
        self._owed = Owed()  # prefill tokens until the first byte

    # -- candidates

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        first, second = self.candidates(step, engines)
        cached = {e.id: self.board.fleet.expected_cached(step.program, e) for e in (first, second)}
        order = (-cached[first.id], self.ttft_s(step, first)) <= (
            -cached[second.id],
            self.ttft_s(step, second),
        )
        warmer, other = (first, second) if order else (second, first)
        if self.ttft_s(step, warmer) > self.params.ttft_slo_s:
            warmer = min((warmer, other), key=lambda e: self.ttft_s(step, e))
        self._owed.put(step, warmer, self._missing(step, warmer))
        return warmer

    def candidates(self, step: Step, engines: list[Engine]) -> tuple[Engine, Engine]:
        """Its two engines; the same twice if there is one."""
        names = tuple(e.id for e in engines)
        if self._rings is None or self._rings[0] != names:
            self._rings = (names, Ring("first", names), Ring("second", names))
        key = self._key_of(step, len(engines))
        first = self._rings[1].find(key)
        return self.board.fleet[first], self.board.fleet[self._rings[2].find(key, without=first)]

    def _key_of(self, step: Step, n: int) -> str:
        """The leading segments down to the first that is not hot."""
        path = step.program.prefix
        for segment in path:
            if not self._is_hot(segment.hash, n):
                return str(segment.hash)
        return f"{path[-1].hash if path else ''}/{step.program.id}"

    def _is_hot(self, prefix: int, n: int) -> bool:
        """From 2/n of the recent traffic on, until it is less than 1/n."""
        heat = self._heat.get(prefix)
        if heat is None:
            return False
        # what a prefix in every step would count
        every = min(self._steps_seen, self.params.memory_steps / 0.6931)
        share = self._counted(heat) / max(every, 1.0)
        heat.split = share > 2.0 / n or (heat.split and share >= 1.0 / n)
        return heat.split

    def _counted(self, heat: Heat) -> float:
        return float(heat.count * 0.5 ** ((self._steps_seen - heat.at) / self.params.memory_steps))

    def returned(self, step: Step, now: float) -> None:
        self._steps_seen += 1.0
        for segment in step.program.prefix:
            heat = self._heat.setdefault(segment.hash, Heat())
            heat.count, heat.at = self._counted(heat) + 1.0, self._steps_seen

    # -- expected times

    def ttft_s(self, step: Step, engine: Engine) -> float:
        """Prefill before it, in flight and in line, and its own."""
        before = self._owed.of(engine, without=step)
        return engine.prefill_s(before + self._missing(step, engine))

    def _missing(self, step: Step, engine: Engine) -> int:
        return max(step.prompt_tokens - self.board.fleet.expected_cached(step.program, engine), 1)

    def started(self, step: Step, now: float) -> None:
        self._owed.drop(step)

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        self._owed.drop(step)
        self._rebalance(now)

    # -- rebalancing

    def _rebalance(self, now: float) -> None:
        """The last of the longest line moves to its other candidate when its TTFT gains by it."""
        longest = max(self.lines(), key=len, default=None)
        if longest is None or len(longest) < 2:
            return
        step = longest.last_come()
        if step is None:
            return
        engines = self.board.fleet.usable(step.model)
        here = self.home(step.program, engines)
        if here is None or len(engines) < 2:
            return
        for other in self.candidates(step, engines):
            if other is not here and self.ttft_s(step, here) - self.ttft_s(step, other) > 0:
                self.move(step, other)
                self._owed.put(step, other, self._missing(step, other))
                return
