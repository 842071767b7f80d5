"""JITServe: just enough bandwidth for each request, just in time.

Intent: serve as many requests as possible within their objectives when lengths and dependencies are unknown.
Reads: deadlines, an upper bound of the output, forecasts of steps left, prefill and decode speed.

A step needs the bandwidth `upper bound of its tokens / time left`; given just that much it would end at its objective,
so it may start as late as `objective - time it takes by that bound`. Those that can still make it go by that time, the
least slack first; those that cannot wait behind them, until they have waited for `patience_s`. Of the first few, the
one whose length is the nearest to what runs on the engine goes, for a batch is as slow as its longest member.

Loses: with bounds that are too low everything is late at once; it knows no KV, so programs are served as if nothing of
them were cached.

Departs: batches are composed by the engine, so that bandwidth becomes order alone; the quantile forest is the forecast
times `bound_factor`, and is not asked again while tokens come. A program's objective is divided among its steps as
HexGen-Flow does; the pattern graphs of the paper are forecasts of steps left.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.fleet import Engine
from agentserve.core.ids import StepId
from agentserve.core.policies.literature.lines import Key, Line, Timers
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.program import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class JitServeParams(QueueingParams):
    """`group` is how many of the first are looked at for a like length."""

    slo_s: float = 600.0
    bound_factor: float = 1.5
    group: int = 4
    patience_s: float = 60.0


class JitServe(Queueing):
    """Least slack, by an upper bound."""

    name = "jitserve"
    reason = "just_in_time"
    Params = JitServeParams
    params: JitServeParams

    def setup(self) -> None:
        super().setup()
        self._turns = Timers()  # when a step's class may change

    def key(self, step: Step, now: float) -> Key:
        latest = self.latest_start(step)
        if latest >= now:
            return (0, latest)
        hopeless_since = max(latest, step.arrived_at)
        if now - hopeless_since >= self.params.patience_s:
            return (0, hopeless_since)
        return (1, hopeless_since)

    def latest_start(self, step: Step) -> float:
        program = step.program
        deadline = program.deadline_at
        if deadline is None:
            deadline = program.created_at + self.params.slo_s
        share_s = (deadline - step.arrived_at) / max(self.board.foresight.steps_left(program), 1.0)
        return step.arrived_at + share_s - self.bound_s(step)

    def bound_s(self, step: Step) -> float:
        """How long it takes at most on the fastest engine."""
        output = step.output_tokens * self.params.bound_factor
        if step.output_tokens_max is not None:
            output = min(output, step.output_tokens_max)
        engines = self.board.fleet.usable(step.model)
        return min((e.prefill_s(step.prompt_tokens) + e.decode_s(output) for e in engines), default=0.0)

    def returned(self, step: Step, now: float) -> None:
        self._set_turn(step, now)

    def _set_turn(self, step: Step, now: float) -> None:
        latest = self.latest_start(step)
        due = latest if latest >= now else max(latest, step.arrived_at) + self.params.patience_s
        if due >= now:
            self._turns.set(step.id, due + 1e-3)  # past the turn, not on it

    def going(self, step: Step, engine: Engine, now: float) -> None:
        self._turns.drop(step.id)

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        self._turns.drop(step.id)

    def epoch(self, now: float) -> None:
        while (due := self._turns.first()) is not None and due <= now:
            step = self.board.waiting.get(StepId(self._turns.take()))
            if step is not None and step.id in self._line_of:
                self.rekey(step, now)
                self._set_turn(step, now)

    def wake(self) -> float | None:
        return self._turns.first()

    def next_step(self, line: Line, now: float) -> Step | None:
        head = line.head()
        if head is None or self.params.group <= 1:
            return head
        engine: Engine | None = self.board.fleet.get(self.own(head.program).engine)
        if engine is None or not engine.steps:
            return head
        usual = engine.in_flight_tokens / len(engine.steps)
        rank = line.key_of(head)[0]
        alike = [s for s in line.first(self.params.group) if line.key_of(s)[0] == rank]
        return min(alike, key=lambda s: abs(s.prompt_tokens + s.output_tokens - usual))
