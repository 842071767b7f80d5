"""HexGen-Flow (Text2SQL): stages of a query get a share of its deadline, and the most urgent goes first.

Intent: meet the deadlines of multi-stage programs on engines of unequal speed.
Reads: deadlines, forecasts of steps and output, engine speeds, work placed on each engine.

Dispatch: the engine with the largest `alpha t_base / t_e - (1 - alpha) load_e / load_base`, t_e the step's time there,
t_base the shortest of those, load_base the largest load. A stage's objective is its share of what time is left,
`(SLO - elapsed) t_i / sum of t_k over the stages left`; urgency is `t_exec - (objective - waited)`, the largest first.
All urgencies grow alike with time, so the order is static: the latest time at which the step may start.

Loses: it places every step anew, so a program's KV is left behind with each change of engine; without deadlines of
their own all programs have the same one, and the order is nearly first come first served.

Departs: stages' times come from forecasts, not from offline tables; programs without a deadline get `slo_s`; alpha,
tuned by trace simulation in the paper, is a constant to tune.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.fleet import Engine
from agentserve.core.policies.literature.lines import Key, Owed
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.program import Program, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class HexGenParams(QueueingParams):
    """Between speed (1) and load (0)."""

    alpha: float = 0.3
    slo_s: float = 600.0


class HexGen(Queueing):
    """Urgency by stages' shares of the deadline."""

    name = "hexgen"
    reason = "urgency"
    Params = HexGenParams
    params: HexGenParams

    def setup(self) -> None:
        super().setup()
        self._owed = Owed()  # seconds

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        times = {e.id: exec_s(step, e) for e in engines}
        loads = {e.id: self._owed.of(e, without=step) for e in engines}
        fastest, fullest = min(times.values()), max(max(loads.values()), 1e-9)

        def score(engine: Engine) -> tuple[float, int, str]:
            speed, load = fastest / times[engine.id], loads[engine.id] / fullest
            return (self.params.alpha * speed - (1 - self.params.alpha) * load, -len(engine.steps), engine.id)

        chosen = max(engines, key=score)
        self._owed.put(step, chosen, times[chosen.id])
        return chosen

    def key(self, step: Step, now: float) -> Key:
        engines = self.board.fleet.usable(step.model) or list(self.board.fleet)
        t_exec = min((exec_s(step, e) for e in engines), default=0.0)
        return (0, step.arrived_at + self.objective_s(step) - t_exec)

    def objective_s(self, step: Step) -> float:
        """This stage's share of the time left; stages still to come are taken to be like this one."""
        left_s = self.deadline_of(step.program) - step.arrived_at
        return left_s / max(self.board.foresight.steps_left(step.program), 1.0)

    def deadline_of(self, program: Program) -> float:
        return (
            program.deadline_at if program.deadline_at is not None else program.created_at + self.params.slo_s
        )

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        self._owed.drop(step)


def exec_s(step: Step, engine: Engine) -> float:
    """The step alone on the engine, nothing cached."""
    return max(engine.prefill_s(step.prompt_tokens) + engine.decode_s(step.output_tokens), 1e-6)
