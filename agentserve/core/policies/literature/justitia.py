"""Justitia: one agent at a time gets all it can use, in the order in which a fair server would finish them.

Intent: finish task-parallel agents early without being unfair to any: each is delayed by a bounded time at most
against fair sharing, and most finish long before.
Reads: forecasts of a program's steps and output, how contexts grow, KV capacity and decode speed.

Cost of an agent: KV token-time, `p d + d^2 / 2` summed over its calls. Its tag is its virtual finish under fair
sharing of the fleet's KV token-time among all agents, `V(arrival) + cost`, fixed at arrival. The smallest tag goes
first and gets all that it can use ("pampering"). Sub-agents are tasks of their root and share its tag.

Loses: when costs are forecast badly: a long program taken for a short one goes before all others until it ends. It
keeps nothing for tool gaps, which its agents do not have: their KV is evicted by those let in meanwhile.

Departs: the paper's small neural network is our forecast of steps and output here; the KV it schedules inside the
engine is room at the proxy. The fleet counts as one server.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.ids import ProgramId
from agentserve.core.policies.literature.bays import Standing
from agentserve.core.policies.literature.lines import Key
from agentserve.core.policies.literature.queueing import Queueing
from agentserve.core.policies.literature.virtual_time import KvTime, VirtualTime, turnover
from agentserve.core.program import Program, Step


@dataclass(slots=True, eq=False)
class Tagged(Standing):
    """A program's virtual finish."""

    tag: float | None = None
    prompt_tokens: int = 0  # of its latest step


class Justitia(Queueing):
    """Virtual finish tags over agents."""

    name = "justitia"
    reason = "virtual_finish"
    one_queue = True
    Own = Tagged

    def setup(self) -> None:
        super().setup()
        self.clock = VirtualTime()
        self.kv_time = KvTime()

    def own(self, program: Program) -> Tagged:
        standing = super().own(program)
        assert isinstance(standing, Tagged)
        return standing

    def key(self, step: Step, now: float) -> Key:
        return (0, self.own(step.program).tag or 0.0)

    def returned(self, step: Step, now: float) -> None:
        own = self.own(step.program)
        if step.relation != "auxiliary":
            if own.prompt_tokens:
                self.kv_time.grew(step.prompt_tokens - own.prompt_tokens)
            own.prompt_tokens = step.prompt_tokens
        if own.tag is None:
            own.tag = self._tag(step, now)

    def _tag(self, step: Step, now: float) -> float:
        parent: ProgramId | None = step.program.parent
        above = self.board.programs.get(parent) if parent is not None else None
        if above is not None and above.own is not None and self.own(above).tag is not None:
            return self.own(above).tag or 0.0
        self.clock.advance(now)
        cost_s = self.kv_time.of_program(step, self.board.foresight) / turnover(self.board.fleet)
        return self.clock.join(cost_s)
