"""VTC, the virtual token counter: the tenant that got the least goes next.

Intent: a heavy tenant must not starve the others, whatever it sends.
Reads: prompt and output tokens by tenant, and tenants' weights.

A tenant's counter grows by `input_weight` x prompt tokens at dispatch and `output_weight` x output tokens, over its
weight. Of the tenants with waiting steps the least counter goes, in order of arrival. One that comes back with
nothing waiting is lifted to the least counter of those that wait, or, if nobody does, to that of the last who did.
While two tenants both wait, their counters stay within `2 max(w_in L_in, w_out M)`; the largest gap seen is reported.

Loses: it knows neither programs nor prefixes. A tenant's programs take turns step by step, none finishes early, and
their contexts, of which none is kept, evict each other. Linear tokens are not what memory costs.

Departs: output is charged when the reply is whole, for the proxy sees no tokens before; with `foresee` the forecast
is charged at dispatch and corrected then. One queue and one set of counters for all engines; a step goes to its
program's engine when that has room.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.fleet import Engine
from agentserve.core.ids import TenantId
from agentserve.core.policies.literature.bays import Standing
from agentserve.core.policies.literature.lines import Line, LineByTenant
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.program import Program, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class VtcParams(QueueingParams):
    """The paper's prices."""

    input_weight: float = 1.0
    output_weight: float = 2.0
    foresee: bool = False


@dataclass(slots=True, eq=False)
class Written(Standing):
    """How much of a program's output was charged to its tenant."""

    output_charged: int = 0


class Vtc(Queueing):
    """Fair between tenants, in weighted tokens."""

    name = "vtc"
    reason = "least_counter"
    one_queue = True
    Own = Written
    Params = VtcParams
    params: VtcParams

    def setup(self) -> None:
        super().setup()
        self.counters: dict[TenantId, float] = {}
        self._last_waiting: TenantId | None = None
        self._gap_max = 0.0

    def own(self, program: Program) -> Written:
        standing = super().own(program)
        assert isinstance(standing, Written)
        return standing

    def new_line(self) -> Line:
        return LineByTenant(lambda tenant, _: self.counters.get(tenant, 0.0))

    def returned(self, step: Step, now: float) -> None:
        tenant = step.program.tenant
        waiting = self._waiting()
        if tenant in waiting:
            return
        levels = [self.counters.get(t, 0.0) for t in waiting]
        if not levels and self._last_waiting is not None:
            levels = [self.counters.get(self._last_waiting, 0.0)]
        self.counters[tenant] = max([self.counters.get(tenant, 0.0), *([min(levels)] if levels else [])])

    def going(self, step: Step, engine: Engine, now: float) -> None:
        self._note_leaving(step.program.tenant)
        cost = self.params.input_weight * step.prompt_tokens
        if self.params.foresee:
            cost += self.params.output_weight * int(step.output_tokens)
        self._charge_tenant(step.program.tenant, cost)

    def over(self, step: Step, now: float, *, finished: bool, engine: Engine | None) -> None:
        if engine is None:
            self._note_leaving(step.program.tenant)
        if finished:
            own = self.own(step.program)
            written = step.program.output_tokens_total - own.output_charged
            own.output_charged = step.program.output_tokens_total
            foreseen = int(step.output_tokens) if self.params.foresee else 0
            self._charge_tenant(step.program.tenant, self.params.output_weight * (written - foreseen))

    def _charge_tenant(self, tenant: TenantId, cost: float) -> None:
        weight = self.board.share(tenant).weight
        self.counters[tenant] = self.counters.get(tenant, 0.0) + cost / weight
        levels = [self.counters.get(t, 0.0) for t in self._waiting()]
        if len(levels) > 1:
            self._gap_max = max(self._gap_max, max(levels) - min(levels))

    def _waiting(self) -> set[TenantId]:
        return {t for line in self.lines() if isinstance(line, LineByTenant) for t in line.tenants()}

    def _note_leaving(self, tenant: TenantId) -> None:
        if tenant not in self._waiting():
            self._last_waiting = tenant

    def figures(self) -> dict[str, float]:
        return {**super().figures(), "gap_max": self._gap_max}
