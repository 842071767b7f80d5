"""SAGA: pins by the tool's 95th percentile, eviction aware of the workflow, stealing, and shares by urgency.

Intent: keep a program's KV over tool calls, keep engines level, and let no light tenant starve.
Reads: tool durations, forecasts of steps and output, deadlines, engine loads, tenants.

TTL: `min(P95 * (1 - 0.5 m), 300 s)`, `m = (used - 0.7) / 0.2` from 0 up, P95 of a log-normal fitted to the tool.
Eviction (WA-LRU): the largest `0.3 R + 0.5 (1 - P_reuse) + 0.2 S` goes: age and size as shares, `P_reuse` the
chance of a next step times the overlap `n / (n + observed)`. Routing: the program's engine while less than 0.8 of it is
used, else the least used. Stealing: an engine idle for 100 ms, or with less than half the load of the fullest, takes
the head of the longest line. Tenants (AFS): the one whose use is least for its `sum of work left / (deadline - now)`,
found anew every 100 ms; inside a tenant programs by arrival. Until 30 programs ended it pins nothing.

Loses: the TTL is an outer percentile, so pins of heavy-tailed tools hold memory for minutes; the paper reports 53%
worse at a coefficient of variation of 3. Its figures are unverified.

Departs: pins are reservations; nothing is preempted in the engine; stolen steps prefill anew (the paper moves KV).
Without callbacks of a framework there is no graph: `P_reuse` comes from the forecast of steps left, and the prefetch of
a known successor is left out. A program without a deadline has 1.5 times its expected time, the paper's objective. Work
left is summed over the programs that have a step waiting or running: what is away uses nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cachetools import LRUCache

from agentserve.core.fleet import Engine
from agentserve.core.ids import EngineId, TenantId
from agentserve.core.policies.literature.lines import Key, Line, LineByTenant
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.program import Program, Step

TOOLS_MAX = 1024
P95_Z = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaParams(QueueingParams):
    """The paper's constants."""

    age_weight: float = 0.3
    reuse_weight: float = 0.5
    size_weight: float = 0.2
    ttl_max_s: float = 300.0
    used_from: float = 0.7
    used_span: float = 0.2
    home_below: float = 0.8
    steal_idle_s: float = 0.1
    steal_ratio: float = 2.0
    epoch_s: float = 0.1
    slo_factor: float = 1.5
    programs_min: int = 30


class LogNormal:
    """Durations by the mean and spread of their logarithms."""

    __slots__ = ("_mean", "_n", "_squares")

    def __init__(self) -> None:
        self._n, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        value = math.log(max(seconds, 1e-3))
        self._n += 1
        off = value - self._mean
        self._mean += off / self._n
        self._squares += off * (value - self._mean)

    def p95_s(self) -> float:
        spread = math.sqrt(self._squares / (self._n - 1)) if self._n > 1 else 0.0
        return math.exp(min(self._mean + P95_Z * spread, 20.0)) if self._n else 0.0


class Saga(Queueing):
    """Workflow-aware eviction, TTL, affinity with stealing, and agent fair share."""

    name = "saga"
    reason = "fair_share"
    Params = SagaParams
    params: SagaParams

    def setup(self) -> None:
        super().setup()
        self._tools: LRUCache[str, LogNormal] = LRUCache(TOOLS_MAX)
        self._programs_over = 0
        self._observed_tokens = 500.0  # mean growth of a prompt over the context before
        self._step_s = 8.0
        self._shares: dict[TenantId, float] = {}
        self._using: dict[TenantId, int] = {}
        self._idle_since: dict[EngineId, float] = {}
        self._epoch_at: float | None = None

    def new_line(self) -> Line:
        return LineByTenant(lambda t, _: self._using.get(t, 0) / max(self._shares.get(t, 1.0), 1e-9))

    def key(self, step: Step, now: float) -> Key:
        return (0, step.program.created_at)

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        home = self.home(step.program, engines)
        if home is not None and self.used(home) < self.params.home_below:
            return home
        return min(engines, key=lambda e: (self.used(e) / e.speed, len(e.steps), e.id))

    def used(self, engine: Engine) -> float:
        return self.bay(engine).load / engine.kv_tokens

    # -- pins

    def keep_s(self, program: Program, engine: Engine, now: float) -> float:
        known = self._tools.get(self.own(program).tool)
        if known is None or self._programs_over < self.params.programs_min:
            return 0.0
        pressure = max((self.used(engine) - self.params.used_from) / self.params.used_span, 0.0)
        return min(known.p95_s() * (1.0 - 0.5 * pressure), self.params.ttl_max_s)

    def dispensable(self, program: Program, now: float) -> tuple[float, ...]:
        return (self.eviction_value(program, now),)

    def eviction_value(self, program: Program, now: float) -> float:
        """WA-LRU's score of an idle program."""
        kept = self.own(program).kept
        if kept is None:
            return 0.0
        left = self.board.foresight.steps_left(program)
        tokens = max(program.context_tokens, 1)
        reuse = left / (left + 1.0) * tokens / (tokens + self._observed_tokens)
        age = min((now - kept.since) / self.params.ttl_max_s, 1.0)
        size = min(tokens / kept.bay.engine.kv_tokens, 1.0)
        return (
            self.params.age_weight * age
            + self.params.reuse_weight * (1.0 - reuse)
            + self.params.size_weight * size
        )

    def returned(self, step: Step, now: float) -> None:
        program = step.program
        if self._epoch_at is None:
            self._epoch_at = now + self.params.epoch_s
        own = self.own(program)
        if own.gap_since is None or step.relation == "auxiliary":
            return
        gap_s = now - own.gap_since
        if own.tool not in self._tools:
            self._tools[own.tool] = LogNormal()
        self._tools[own.tool].add(gap_s)
        grown = max(step.prompt_tokens - program.context_tokens, 0)
        self._observed_tokens += 0.02 * (grown - self._observed_tokens)
        spent_s = program.attained_s / max(program.steps_done, 1) + gap_s
        self._step_s += 0.02 * (spent_s - self._step_s)

    def left(self, program: Program, now: float) -> None:
        self._programs_over += 1

    # -- shares

    def going(self, step: Step, engine: Engine, now: float) -> None:
        self._using[step.program.tenant] = self._using.get(step.program.tenant, 0) + step.prompt_tokens

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        if engine is not None:
            self._using[step.program.tenant] -= step.prompt_tokens

    def urgency(self, program: Program, now: float) -> float:
        """Work left over time left."""
        left_s = self.board.foresight.steps_left(program) * self._step_s
        deadline = program.deadline_at
        if deadline is None:
            expected_s = program.steps_done * self._step_s + left_s
            deadline = program.created_at + self.params.slo_factor * expected_s
        return left_s / max(deadline - now, 1.0)

    def epoch(self, now: float) -> None:
        if self._epoch_at is None or now < self._epoch_at:
            return
        self._shares = {}
        for program in {s.program.id: s.program for s in self.board.steps.values()}.values():
            share = self._shares.get(program.tenant, 0.0) + self.urgency(program, now)
            self._shares[program.tenant] = share
        self._steal(now)
        self._epoch_at = now + self.params.epoch_s if self.board.waiting else None

    def wake(self) -> float | None:
        return self._epoch_at

    # -- stealing

    def _steal(self, now: float) -> None:
        engines = [e for e in self.board.fleet if e.usable("")]
        for engine in engines:
            if engine.steps:
                self._idle_since.pop(engine.id, None)
            else:
                self._idle_since.setdefault(engine.id, now)
        lines = [(len(line), e.id, line) for e in engines if (line := self.line(e))]
        if not lines or len(engines) < 2:
            return
        _, busiest, line = max(lines)
        step = line.head()
        thieves = [e for e in engines if e.id != busiest and not self.line(e)]
        if step is None or not thieves:
            return
        thief = min(thieves, key=lambda e: (self.used(e), e.id))
        idle = now - self._idle_since.get(thief.id, now) >= self.params.steal_idle_s
        behind = self.used(thief) * self.params.steal_ratio < self.used(self.board.fleet[busiest])
        if (idle or behind) and thief.usable(step.model) and self.fits(step, self.bay(thief)):
            self.move(step, thief)
