"""KVFlow: evict first what is the most steps away from being run, and load ahead what is next.

Intent: an LRU evicts an agent's prompt just before it runs; the step graph knows better.
Reads: which program is whose sub-agent and how many steps those have left, forecasts of returns, residency.

Steps to execution: 0 for a program that waits in line, 1 for one whose own next step comes next; for one that waits
for sub-agents, one more than the most steps any of them has left (their results join, so the maximum counts); one that
waits for a person comes after all others. Idle KV is kept until room is needed; then the largest number goes, the
longest idle of equals. What is within `load_ahead_steps` is kept young in the engine's LRU, and loaded ahead of its
expected return if it was lost.

Loses: without a graph nearly all programs are one step away, and the order is LRU again. Nothing limits how many
programs share the memory, so under pressure they evict each other as with plain affinity.

Departs: eviction happens in a stock engine, out of reach: what shall stay is refreshed by one-token requests instead,
what shall go is not. The engine's host cache and its skipping of requests that are still loading are left out. The
graph is the one that shows: parents, sub-agents and forecasts of steps.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from agentserve.core.fleet import Engine
from agentserve.core.ids import ProgramId
from agentserve.core.policies.literature.bays import Bay
from agentserve.core.policies.literature.lines import Timers
from agentserve.core.policies.literature.queueing import KEEP_S_MAX, Queueing, QueueingParams
from agentserve.core.program import Program, Step

FAR_STEPS = 1e9  # a person's turn


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFlowParams(QueueingParams):
    """`load_ahead_steps` is the public code's."""

    load_ahead_steps: float = 2.0
    refresh_s: float = 2.0  # 0: no refreshing
    refresh_risk: float = 0.5  # of the KV not in use written since the last use
    loads_max: int = 8  # refreshes and loads at once, an engine


class KvFlow(Queueing):
    """Steps to execution."""

    name = "kvflow"
    reason = "arrival"
    Params = KvFlowParams
    params: KvFlowParams

    def setup(self) -> None:
        super().setup()
        self._children: dict[ProgramId, dict[ProgramId, Program]] = {}
        self._loads = Timers()  # when to load a program's KV
        self._refresh_at: float | None = None
        self.counts.update(refreshed=0.0, loaded=0.0)

    def steps_to_execution(self, program: Program) -> float:
        if not program.idle:
            return 0.0
        children = self._children.get(program.id)
        if children:
            return 1.0 + max(self.board.foresight.steps_left(c) for c in children.values())
        return FAR_STEPS if program.turn_done else 1.0

    def dispensable(self, program: Program, now: float) -> tuple[float, ...]:
        away_s = 0.0 if program.gap_started_at is None else now - program.gap_started_at
        return (self.steps_to_execution(program), away_s)

    def keep_s(self, program: Program, engine: Engine, now: float) -> float:
        if self.params.refresh_s and self._refresh_at is None:
            self._refresh_at = now + self.params.refresh_s
        gap = self.board.gap(program)
        if gap is not None:
            due_s = gap.quantile(0.5) - engine.prefill_s(program.context_tokens)
            self._loads.set(program.id, now + min(max(due_s, 0.0), KEEP_S_MAX))
        return KEEP_S_MAX

    def returned(self, step: Step, now: float) -> None:
        program = step.program
        self._loads.drop(program.id)
        if program.parent is not None and not program.steps_done:
            self._children.setdefault(program.parent, {})[program.id] = program

    def left(self, program: Program, now: float) -> None:
        self._loads.drop(program.id)
        self._children.pop(program.id, None)
        siblings = self._children.get(program.parent) if program.parent is not None else None
        if siblings is not None and program.parent is not None:
            siblings.pop(program.id, None)
            if not siblings:
                del self._children[program.parent]

    def _unblock(self, step: Step, bays: list[Bay], now: float) -> Bay | None:
        """Idle KV never holds a step back: the furthest from execution goes."""
        for bay in bays:
            if bay.engine.seqs_free() > 0:
                self.make_room(step, bay, now, "furthest")
            if self.fits(step, bay):
                return bay
        return super()._unblock(step, bays, now)

    def epoch(self, now: float) -> None:
        while (due := self._loads.first()) is not None and due <= now:
            self._load_ahead(self.board.programs.get(ProgramId(self._loads.take())), now)
        if self._refresh_at is not None and now >= self._refresh_at:
            kept = False
            for engine in self.board.fleet:
                kept |= self._refresh(self.bay(engine), now)
            self._refresh_at = now + self.params.refresh_s if kept else None

    def wake(self) -> float | None:
        times = [t for t in (self._loads.first(), self._refresh_at) if t is not None]
        return min(times, default=None)

    def _load_ahead(self, program: Program | None, now: float) -> None:
        """Soon back, and its KV is lost: bring it in, if its engine has nothing else to do for those who wait."""
        engine = self.board.fleet.get(program.home) if program is not None else None
        if (
            program is None
            or engine is None
            or not program.idle
            or not engine.usable("")
            or self.line(engine)
        ):
            return
        lost = self.board.fleet.expected_cached(program, engine) * 2 < program.context_tokens
        if lost and self.steps_to_execution(program) <= self.params.load_ahead_steps:
            self.counts["loaded"] += 1
            self.board.warm(
                program, engine, tokens=program.context_tokens, due=now, reason="steps_to_execution"
            )

    def _refresh(self, bay: Bay, now: float) -> bool:
        """Keep young in the LRU what runs soon and is at risk; whether anything is kept here."""
        spare = max(bay.engine.kv_tokens - bay.load, 0)
        due = [
            p
            for p in bay.kept.values()
            if bay.engine.written - p.home_clock > self.params.refresh_risk * spare and p.idle
        ]
        for program in heapq.nsmallest(self.params.loads_max, due, key=self.steps_to_execution):
            if self.steps_to_execution(program) <= self.params.load_ahead_steps:
                self.counts["refreshed"] += 1
                self.board.warm(
                    program, bay.engine, tokens=program.context_tokens, due=now, reason="touch", refresh=True
                )
        return bool(bay.kept)
