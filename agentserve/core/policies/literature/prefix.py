"""Prefix-aware routing with a load guard: what cache-aware routers (SGLang's, and others after it) do.

Intent: send a step where the longest prefix of its prompt is cached, unless that engine is overloaded.
Reads: what each engine probably holds of the prompt, and steps in flight per engine.

The rule: when the fleet is unbalanced (`max - min > balance_abs` and `max > balance_rel * min` steps in flight) the
least loaded engine takes it; else the one with the best match, if that is more than `match_min` of the prompt; else
the least loaded.

Loses: when contexts outgrow the memory, like affinity; and the guard scatters programs just when it is busiest.
Departs: the router's approximate radix tree is the fleet's residency estimate here, which also knows of evictions.
Where the original sends an unmatched prompt to the engine with the smallest tree, this sends it to the least loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.fleet import Engine
from agentserve.core.policies.policy import Placing, least_loaded
from agentserve.core.program import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixParams:
    """SGLang's router's defaults."""

    match_min: float = 0.3  # of the prompt
    balance_abs: int = 64  # steps
    balance_rel: float = 1.5


class Prefix(Placing):
    """Longest cached prefix, under a load guard."""

    name = "prefix"
    reason = "prefix"
    Params = PrefixParams
    params: PrefixParams

    def place(self, step: Step, engines: list[Engine], now: float) -> Engine:
        loads = [len(e.steps) / e.speed for e in engines]
        most, fewest = max(loads), min(loads)
        if most - fewest > self.params.balance_abs and most > self.params.balance_rel * fewest:
            return least_loaded(engines)
        held = {e.id: self.board.fleet.expected_cached(step.program, e) for e in engines}
        longest = max(held.values())
        if longest <= self.params.match_min * step.prompt_tokens:
            return least_loaded(engines)
        return least_loaded([e for e in engines if held[e.id] == longest])
