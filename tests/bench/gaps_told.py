"""How much better forecasts of gaps could make it: `PYTHONPATH=. agentserve simulate --workload slowtools --policy
tests.bench.gaps_told.GapsTold`, on `coding` too.

Ours in all but what is foretold of gaps. Told is what each tool's durations are drawn from over all programs; what is
each program's own in them is inferred from its calls so far by Bayes' rule: none that learns from the traffic knows
more than this. With `own=1` each program's own distributions are told as well, which nobody could know of one that has
only begun. What lies beyond that, up to the gaps themselves, is foreknowledge.

Rule: it is told how the tools of these workloads are drawn, so its figures are a bound and no policy's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from agentserve.core.events import AnyEvent, StepArrived
from agentserve.core.forecast import Survival
from agentserve.core.forecast.grid import TOOL_SECONDS
from agentserve.core.foresight import Survival as Gap
from agentserve.core.learned import Learned
from agentserve.core.policies.params import WorkingSetParams
from agentserve.core.policies.working_set import WorkingSet
from agentserve.core.program import Program, Step
from agentserve.sim.workloads.coding import TOOLS, Tooling, plain, slow
from agentserve.sim.workloads.draws import Draws

SLOWER = {"slowtools": slow(Draws("median"), 1.0, 0.0)}  # than the plain tools of all else
THINKING_S = 0.02  # of the client, after its tools
Call = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GapsToldParams(WorkingSetParams):
    """Ours, and how much is told."""

    own: int = 0  # 1: each program's own distributions


def slowest(calls: list[tuple[float, float]]) -> Survival:
    """The longest of parallel calls, each log-normal: the logarithm of its median, and its sigma."""
    by = [0.0]
    for edge in TOOL_SECONDS.log_edges[1:-1]:
        back = 1.0
        for median, sigma in calls:
            back *= 0.5 * math.erfc((median - edge) / (sigma * math.sqrt(2.0)))
        by.append(back)
    return Survival(TOOL_SECONDS, [later - earlier for earlier, later in pairwise([*by, 1.0])])


class Told(Learned):
    """What is learned of all else, and what is told of gaps."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self._own = own
        self._seen: defaultdict[tuple[str, Call], list[float]] = defaultdict(list)  # logarithms of durations

    def learn(self, event: AnyEvent, program: Program | None, step: Step | None, now: float) -> None:
        if isinstance(event, StepArrived) and program is not None and program.gap_started_at is not None:
            calls = list(program.calls.values()) if program.calls else []
            if len(calls) == 1:  # of several, nobody says which ended last
                took_s = max(now - program.gap_started_at - THINKING_S, 1e-3)
                self._seen[program.id, (calls[0].name, calls[0].argument_class)].append(math.log(took_s))
        super().learn(event, program, step, now)

    def gap(self, program: Program, now: float) -> Gap:
        if not program.calls:
            return super().gap(program, now)
        drawn = self._told if self._own else self._inferred
        return slowest([drawn(program, (c.name, c.argument_class)) for c in program.calls.values()])

    def _inferred(self, program: Program, call: Call) -> tuple[float, float]:
        """All programs' distribution, narrowed by what was seen of this one's."""
        _, median, sigma, own = TOOLS[call]
        between, within = (own * sigma) ** 2, sigma**2 * (1.0 - own**2)
        seen = self._seen[program.id, call]
        weight = 1.0 / between + len(seen) / within
        middle = (math.log(median * slower(program)) / between + sum(seen) / within) / weight
        return middle, math.sqrt(within + 1.0 / weight)

    def _told(self, program: Program, call: Call) -> tuple[float, float]:
        """What this program's calls are drawn from."""
        _, median, sigma, own = TOOLS[call]
        name, seed, index = program.id.rsplit("-", 2)
        local = Tooling(Draws(name, int(seed), int(index)), plain).local[call]
        return math.log(median * local * slower(program)), sigma * math.sqrt(1.0 - own**2)


def slower(program: Program) -> float:
    """How much longer than usual the tools of its workload take."""
    return SLOWER.get(program.id.partition("-")[0], 1.0)


class GapsTold(WorkingSet):
    """Ours with better forecasts of gaps than can be learned."""

    name = "gaps_told"
    Params = GapsToldParams
    params: GapsToldParams

    def setup(self) -> None:
        super().setup()
        self.board.foresight = Told(own=bool(self.params.own))
