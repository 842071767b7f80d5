"""Preble: exploit the engine that holds the prefix, or explore the cheapest, by which saves more.

Intent: reuse of prompts across engines without overloading the one that holds a popular prefix.
Reads: residency, prefill speed, the load that each engine was given lately, whether memory is full, TTFT by prefix.

If more of the prompt is cached somewhere than is missing there, it goes there (of several, to the least loaded); else
where load over the last 3 minutes plus the cost of what it would evict plus its own prefill is least. When the heaviest
engine has more than 1.5 times the load of the lightest, what would go to the heaviest goes to the lightest. A prefix
whose TTFT doubled between the halves of the window is replicated: its next step explores.

Loses: like affinity, when programs' contexts outgrow the memory; the guard then moves programs, and each move prefills
a long context anew.
Departs: loads are in seconds of prefill and forecast decoding; the cost of eviction is the prefill of as many tokens as
do not fit. An engine that was given nothing yet draws nobody away from the heaviest: what explores finds it. The
engine-level half of Preble (fair order by hit ratio) is inside the engine and left out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from cachetools import LRUCache

from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId
from agentserve.core.policies.policy import Placing
from agentserve.core.program import Step

PREFIXES_MAX = 4096
TTFTS_MAX = 256  # remembered of a prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleParams:
    """The public code's constants."""

    window_s: float = 180.0
    rebalance_ratio: float = 1.5
    replicate_ratio: float = 2.0
    replicate_min: int = 16  # TTFTs in a window before it is judged


class Window:
    """A sum over the last seconds."""

    __slots__ = ("_items", "_span_s", "total")

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._items: deque[tuple[float, float]] = deque()
        self.total = 0.0

    def add(self, value: float, now: float) -> None:
        self._items.append((now, value))
        self.total += value

    def sum(self, now: float) -> float:
        while self._items and self._items[0][0] < now - self._span_s:
            self.total -= self._items.popleft()[1]
        if not self._items:
            self.total = 0.0  # rounding does not pile up
        return max(self.total, 0.0)


class Preble(Placing):
    """Exploit or explore."""

    name = "preble"
    reason = "exploit_or_explore"
    Params = PrebleParams
    params: PrebleParams

    def setup(self) -> None:
        self._loads: dict[EngineId, Window] = {}
        self._ttfts: LRUCache[int, deque[tuple[float, float]]] = LRUCache(PREFIXES_MAX)
        self._counts = dict.fromkeys(("exploited", "explored", "rebalanced", "replicated"), 0.0)

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        cached = {e.id: self.board.fleet.expected_cached(step.program, e) for e in engines}
        longest = max(cached.values())
        loads = {e.id: self._load(e, now) / e.speed for e in engines}
        if longest > step.prompt_tokens - longest and not self._replicates(step, now):
            chosen = min((e for e in engines if cached[e.id] == longest), key=lambda e: (loads[e.id], e.id))
            self._counts["exploited"] += 1
        else:
            chosen = min(
                engines, key=lambda e: (loads[e.id] + self._cost(step, e, cached[e.id]), len(e.steps), e.id)
            )
            self._counts["explored"] += 1
        heaviest = max(engines, key=lambda e: (loads[e.id], e.id))
        lightest = min(engines, key=lambda e: (loads[e.id], e.id))
        if chosen is heaviest and loads[heaviest.id] > self.params.rebalance_ratio * loads[lightest.id] > 0:
            chosen = lightest
            self._counts["rebalanced"] += 1
        work = chosen.prefill_s(max(step.prompt_tokens - cached[chosen.id], 0))
        self._loads[chosen.id].add(work + chosen.decode_s(step.output_tokens), now)
        return chosen

    def _load(self, engine: Engine, now: float) -> float:
        window = self._loads.get(engine.id)
        if window is None:
            window = self._loads[engine.id] = Window(self.params.window_s)
        return window.sum(now)

    def _cost(self, step: Step, engine: Engine, cached: int) -> float:
        """Its own prefill, and that of what it evicts."""
        missing = max(step.prompt_tokens - cached, 0)
        fresh = engine.kv_tokens - min(engine.written, engine.kv_tokens)  # never written yet
        evicted = min(max(missing - fresh, 0), engine.kv_tokens)
        return engine.prefill_s(missing) + engine.prefill_s(evicted)

    def started(self, step: Step, now: float) -> None:
        if step.program.prefix:
            seen = self._ttfts.setdefault(step.program.prefix[-1].hash, deque(maxlen=TTFTS_MAX))
            seen.append((now, now - step.arrived_at))

    def _replicates(self, step: Step, now: float) -> bool:
        """Whether its prefix's TTFT has doubled between the halves of the window. Asked once: then it starts anew."""
        prefix = step.program.prefix[-1].hash if step.program.prefix else None
        seen = self._ttfts.get(prefix) if prefix is not None else None
        if seen is None or len(seen) < self.params.replicate_min:
            return False
        middle = now - self.params.window_s / 2
        late = [ttft for at, ttft in seen if at >= middle]
        early = [ttft for at, ttft in seen if now - self.params.window_s <= at < middle]
        if not late or not early:
            return False
        doubled = sum(late) / len(late) > self.params.replicate_ratio * sum(early) / len(early)
        if doubled:
            seen.clear()
            self._counts["replicated"] += 1
        return doubled

    def figures(self) -> dict[str, float]:
        return dict(self._counts)
