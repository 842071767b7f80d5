"""What the engines would still have held had every step gone straight to them: the measure of what we spare.

    direct = Direct(board)
    audience.hear(direct.hears)              # of each event once the scheduler's records were changed by it

Rule: it only looks, in constant time an event, and errs against us. Going direct, every agent under way works at once,
those that we hold back too. An engine's LRU then serves them all alike: when their contexts are more than the engines'
KV, a returning step finds of its own context, on average, at most the share `KV / contexts`; the leading segments that
programs share it always finds. What the real engine found, less that, is what was spared; it may be negative. While the
contexts fit, nothing is.

Three things make the truth worse for going direct: those that wait are counted with the context they have, not with the
one they would have by then; steps thrown out of a full engine are not imagined; placement is taken to be perfect. A
test holds the estimate against simulated engines that are really called directly: it is never below what they find.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.audience import Hears
from agentserve.core.board import Board
from agentserve.core.ids import EngineId, ProgramId, StepId
from agentserve.core.program import Program

AWAY_S = 120.0  # an agent that is away for longer is not under way: an LRU may drop it without harm
PROGRAMS_MAX = 50_000
STEPS_MAX = 20_000  # open ones


@dataclass(slots=True)
class _Under:
    """A program under way: its own context, the shared segments left out."""

    tokens: int
    seen_at: float


@dataclass(slots=True)
class _Open:
    """A step under way: its program's own context before it, and the share of it that is found directly."""

    program: ProgramId
    own_tokens: int  # 0: it does not come back to anything
    shared_tokens: int
    share: float
    engine: EngineId | None = None


class Direct:
    """The contexts under way, and the sums."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._under: OrderedDict[ProgramId, _Under] = OrderedDict()  # least lately heard of first
        self._steps: OrderedDict[StepId, _Open] = OrderedDict()
        self._tokens = 0
        self.steps = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0  # that the engines found
        self.direct_tokens = 0  # that they would at most have found
        self.spared_s = 0.0  # prefill time of the difference
        self.hears: Hears = {
            ev.StepArrived: self._arrived,
            ev.StepFinished: self._finished,
            ev.ClientGone: self._gone,
            ev.StepFailed: self._failed,
            ev.ProgramEnded: self._ended,
            do.Dispatch: self._dispatched,
        }

    def contexts_over_kv(self) -> float | None:
        """How often the contexts under way would fill the engines; None while no engine's size is known."""
        room = 0
        for engine in self._board.fleet:  # a generator would cost more than what it adds up
            if engine.up and engine.kv_known:
                room += engine.kv_tokens
        return self._tokens / room if room else None

    def figures(self) -> dict[str, float]:
        """The sums so far, of steps that returned and whose engine told what it found; empty before the first."""
        if not self.steps:
            return {}
        return {
            "steps": float(self.steps),
            "prompt_tokens": float(self.prompt_tokens),
            "cached_tokens": float(self.cached_tokens),
            "direct_cached_tokens": float(self.direct_tokens),
            "spared_s": round(self.spared_s, 3),
        }

    # -- steps

    def _arrived(self, event: ev.StepArrived, now: float) -> None:
        program = self._board.programs.get(event.program)
        if program is None or event.relation == "auxiliary":
            return
        shared = program.shared_tokens
        own = event.prompt_tokens - shared
        if own < 0:
            own = 0
        before = program.context_tokens - shared
        if before > own:
            before = own
        elif before < 0:
            before = 0
        self._comes(program, own, now)
        over = self.contexts_over_kv() if event.relation == "continues" else None
        share = min(1.0, 1.0 / over) if over else 1.0
        self._steps[event.step] = _Open(program.id, 0 if over is None else before, shared, share)
        if len(self._steps) > STEPS_MAX:
            self._steps.popitem(last=False)

    def _dispatched(self, decision: do.Dispatch, now: float) -> None:
        step = self._steps.get(decision.step)
        if step is not None:
            step.engine = decision.engine

    def _gone(self, event: ev.ClientGone, now: float) -> None:
        self._steps.pop(event.step, None)

    def _failed(self, event: ev.StepFailed, now: float) -> None:
        if not event.retryable:
            self._steps.pop(event.step, None)

    def _finished(self, event: ev.StepFinished, now: float) -> None:
        step = self._steps.pop(event.step, None)
        if step is not None and event.final:
            self._leave(step.program)
        if step is None or event.cached_tokens is None or not step.own_tokens:
            return
        found = event.cached_tokens  # while all contexts fit, nobody does better than anybody
        if step.share < 1.0:
            found = min(step.shared_tokens + int(step.own_tokens * step.share), event.prompt_tokens)
        self.steps += 1
        self.prompt_tokens += event.prompt_tokens
        self.cached_tokens += event.cached_tokens
        self.direct_tokens += found
        engine = self._board.fleet.get(step.engine)
        if engine is not None:
            self.spared_s += engine.prefill_s(event.cached_tokens - found)

    # -- programs under way

    def _ended(self, event: ev.ProgramEnded, now: float) -> None:
        self._leave(event.program)

    def _comes(self, program: Program, tokens: int, now: float) -> None:
        under = self._under.get(program.id)
        if under is None:
            self._under[program.id] = _Under(tokens, now)
            self._tokens += tokens
        else:
            self._tokens += tokens - under.tokens
            under.tokens, under.seen_at = tokens, now
            self._under.move_to_end(program.id)
        for _ in range(2):  # at most two leave for one that comes: bounded work, and it keeps up
            oldest, under = next(iter(self._under.items()))
            known = self._board.programs.get(oldest)
            if known is not None and len(self._under) <= PROGRAMS_MAX and under.seen_at + AWAY_S > now:
                return
            if known is not None and known.open_steps and len(self._under) <= PROGRAMS_MAX:
                under.seen_at = now
                self._under.move_to_end(oldest)
            else:
                self._leave(oldest)

    def _leave(self, program: ProgramId) -> None:
        under = self._under.pop(program, None)
        if under is not None:
            self._tokens -= under.tokens
