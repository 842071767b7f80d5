"""InferCept: keep or discard the KV of an intercepted program, whichever wastes less memory.

Intent: a tool call in the middle of a program should cost neither memory held for nothing nor context computed twice.
Reads: context lengths, prefill speed, what else an engine holds, time since the tool call began.

Waste of keeping: `T_rem * C`. Waste of discarding: recompute time x `(C + C_other)`, for recomputing holds its own
memory and delays all others'. The program is discarded as soon as keeping wastes more. How long the call will still
last is taken to be as long as it has lasted, so that the keeping time has a closed form, `recompute * (1 + C_other /
C)`, found anew when it runs out. The kept go on at once, for their memory is theirs; the others stand in line by the
time at which they first came.

Loses: with long calls it holds memory for as long as it would take to find out that they are long; queueing that a
return would meet is not counted, only its prefill.

Departs: swapping is the engine's own business and left out (two of the three choices remain), and so are the chunks in
which the paper recomputes: the context counts as filled in one go. Keeping is a reservation. `foresee` takes the median
of the forecast for the duration instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentserve.core.fleet import Engine
from agentserve.core.policies.literature.bays import Kept
from agentserve.core.policies.literature.lines import Key
from agentserve.core.policies.literature.queueing import Queueing, QueueingParams
from agentserve.core.program import Program, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class InferCeptParams(QueueingParams):
    """Constants of the estimate."""

    foresee: bool = False


class InferCept(Queueing):
    """Minimum waste."""

    name = "infercept"
    reason = "original_order"
    Params = InferCeptParams
    params: InferCeptParams

    def key(self, step: Step, now: float) -> Key:
        return (0 if self.own(step.program).kept is not None else 1, step.program.created_at)

    def keep_s(self, program: Program, engine: Engine, now: float) -> float:
        others = self.bay(engine).load
        limit_s = self._limit_s(program, engine, others)
        gap = self.board.gap(program) if self.params.foresee else None
        if gap is None:
            return limit_s
        expected: float = gap.quantile(0.5)
        return expected if expected <= limit_s else 0.0

    def still_kept(self, program: Program, kept: Kept, now: float) -> float:
        engine = kept.bay.engine
        return self._limit_s(program, engine, kept.bay.load - kept.tokens) - (now - kept.since)

    def _limit_s(self, program: Program, engine: Engine, others: int) -> float:
        """Seconds after which keeping has wasted what discarding would."""
        context = max(program.context_tokens, 1)
        return engine.prefill_s(context) * (context + others) / context
