"""What became of programs, tool calls, pins and warms, told from the scheduler's events and decisions.

    story = Story()
    facts = story.tell(event, now, decisions)

Rule: it only looks. The journal, the metrics, the traces and the console all fold the same events through it, so that
"a pin was hit" or "a program took this long" means one thing everywhere. Facts are immutable and come when they are
known; memory is bounded by `programs_max`, and what is forgotten is closed as `forgotten`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.facts import AnyFact, PinEnd, PinOver, PinPaid, ProgramOpened, StepOver, WarmEnd
from agentserve.core.lives import KeptLife, Life, OpenStep, Out, Pinned, Warming

PROGRAMS_MAX = 200_000
TOOLS_OF_PROGRAM_MAX = 512
PROGRAM_IDLE_S = 1800.0
EXPIRED_AT_ONCE_MAX = 1000
STEPS_MAX = 100_000  # open ones; more means that their ends were not told
LOST_STEP_S = 7200.0  # a step that is open for so long will not be heard of again
# relations of steps of whose prompts nothing was there before
BEGINS = frozenset({"new", "subagent", "compaction", "auxiliary"})
KEPT = "kept"  # the reason of a dispatch whose program kept its room on the engine through the gap
MOVED = "moved"  # of an unpin whose program came back for what its engine does not take
RETRIES_MAX = 1  # as the scheduler: a step that fails again is given up
PREFILL_TOKENS_PER_S = 8_000.0  # until the engine says better


class Story:
    """Folds the scheduler's events. Not shared between threads: whoever wants one makes one."""

    def __init__(
        self,
        *,
        programs_max: int = PROGRAMS_MAX,
        program_idle_s: float = PROGRAM_IDLE_S,
        prefill: Callable[[str], float | None] = lambda engine: None,
    ) -> None:
        """`prefill` knows how many tokens a second an engine prefills, where it does not say so itself."""
        self._programs: OrderedDict[str, Life] = OrderedDict()
        self._steps: dict[str, OpenStep] = {}
        self._prefill: dict[str, float] = {}
        self._prefill_shown = prefill
        self._programs_max = programs_max
        self._idle_s = program_idle_s
        self._facts: list[AnyFact] = []

    @property
    def live(self) -> int:
        """Programs that are not over."""
        return len(self._programs)

    def restore(self, kept: Iterable[KeptLife]) -> None:
        """Take up programs of an earlier run, the least lately heard of first: nobody is told that they open."""
        for one in kept:
            if one.program not in self._programs and len(self._programs) < self._programs_max:
                self._programs[one.program] = Life.taken_up(one)

    def tell(self, event: ev.AnyEvent, now: float, decisions: Sequence[do.AnyDecision] = ()) -> list[AnyFact]:
        """What is now known that was not before."""
        facts = self._facts = []
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event, now)
        for decision in decisions:
            decided = _DECIDED.get(type(decision))
            if decided is not None:
                decided(self, decision, now)
        return facts

    def expire(self, now: float) -> list[AnyFact]:
        """Close programs that were not heard of for long; bounded work, call it now and then."""
        facts = self._facts = []
        for _ in range(min(EXPIRED_AT_ONCE_MAX, len(self._programs))):
            program = next(iter(self._programs.values()))
            if program.seen_at + self._idle_s > now:
                break
            if program.steps_open and program.last_at + LOST_STEP_S > now:
                self._seen(program, now)
            else:
                self._close(program, "idle")
        return facts

    # -- events

    def _step_arrived(self, event: ev.StepArrived, now: float) -> None:
        program = self._open(event, now)
        relation = event.relation
        auxiliary = relation == "auxiliary"
        compared, gap_at = program.context_tokens, None
        if relation != "retry" and not auxiliary:
            gap_at = program.gap_at
            self._returned(program, event, now)
        if relation in BEGINS:
            compared = 0
        elif compared > event.prompt_tokens:
            compared = event.prompt_tokens
        self._steps[event.step] = OpenStep(program, compared, gap_at, gap_at is not None, auxiliary, now)
        program.steps_open += 1
        if not auxiliary:
            program.began()
        if len(self._steps) > STEPS_MAX:
            self._left(next(iter(self._steps)), now)

    def _returned(self, program: Life, event: ev.StepArrived, now: float) -> None:
        """The gap is over: the calls whose results came are done, and others too if a person wrote instead."""
        gap_at = program.gap_at
        if gap_at is not None:
            program.gap_at = None
            if program.main_open:
                pass  # others of its steps run on meanwhile
            elif event.human or program.turn_done:
                program.human_s += now - gap_at
            else:
                program.tool_s += now - gap_at
        out = program.out
        if not out:
            return
        beside = len(out) - 1
        took = event.took({call.tool.id: call.tool for call in out.values()}) if event.measured else {}
        for call_id in event.returned:
            call = out.pop(call_id, None)
            if call is not None:
                seconds, known = took.get(call_id, now - call.started_at), call_id in took
                self._facts.append(call.over(program, seconds, beside=beside, measured=known))
        if event.human:
            for call in out.values():
                self._facts.append(call.over(program, now - call.started_at, beside=beside, censored=True))
            out.clear()

    def _step_finished(self, event: ev.StepFinished, now: float) -> None:
        step = self._left(event.step, now)
        if step is None:
            return
        program = step.program
        program.steps += 1
        cached = event.cached_tokens
        refilled = step.compared - cached if cached is not None and cached < step.compared else 0
        saved_s = cached / self._prefill_rate(step.engine) if cached else 0.0
        self._facts.append(
            StepOver(
                program=program.id,
                tenant=program.tenant,
                workflow=program.workflow,
                step=event.step,
                at=now,
                engine=step.engine,
                refilled_tokens=refilled,
                saved_s=saved_s,
            )
        )
        if step.hit is not None and cached:
            self._paid(step.hit, cached)
        if not step.auxiliary:
            self._gap_begins(program, event, now)
        if program.over:
            self._close_if_over(program)

    def _gap_begins(self, program: Life, event: ev.StepFinished, now: float) -> None:
        program.context_tokens = event.prompt_tokens + event.output_tokens
        program.turn_done = event.turn_done
        if event.final:
            program.over = "final"
        program.gap_at = now
        for tool in event.tools:
            if len(program.out) < TOOLS_OF_PROGRAM_MAX:
                program.out[tool.id] = Out(tool, event.step, now)

    def _paid(self, hit: PinOver, cached: int) -> None:
        """The engine has said what it found of what the pin kept."""
        saved_s = min(hit.tokens, cached) / self._prefill_rate(hit.engine)
        over = msgspec.structs.replace(hit, saved_s=saved_s)
        paid = PinPaid(program=over.program, tenant=over.tenant, workflow=over.workflow, over=over)
        self._facts.append(paid)

    def _prefill_rate(self, engine: str) -> float:
        """Tokens a second."""
        return self._prefill.get(engine) or self._prefill_shown(engine) or PREFILL_TOKENS_PER_S

    def _step_failed(self, event: ev.StepFailed, now: float) -> None:
        open_step = self._steps.get(event.step)
        if open_step is not None and event.retryable and open_step.retries < RETRIES_MAX:
            open_step.retries += 1
            open_step.waits_since = now
            return
        step = self._left(event.step, now)
        if step is not None:
            step.program.failed += 1
            self._close_if_over(step.program)

    def _client_gone(self, event: ev.ClientGone, now: float) -> None:
        step = self._left(event.step, now)
        if step is not None:
            step.program.failed += 1
            self._close_if_over(step.program)

    def _left(self, step_id: str, now: float) -> OpenStep | None:
        step = self._steps.pop(step_id, None)
        if step is not None:
            program = step.program
            program.steps_open -= 1
            program.last_at = now
            self._waited(step, now)
            if not step.auxiliary:
                program.ended(now, step.waited_s)
            self._seen(program, now)
        return step

    def _waited(self, step: OpenStep, now: float) -> None:
        """Its wait is over, whatever became of it."""
        if step.waits_since is not None:
            step.waited_s += now - step.waits_since
            step.waits_since = None

    def _tool_started(self, event: ev.ToolStarted, now: float) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        self._seen(program, now)
        known = program.out.get(event.tool.id)
        if known is not None:
            known.started_at = now
        elif len(program.out) < TOOLS_OF_PROGRAM_MAX:
            program.out[event.tool.id] = Out(event.tool, "", now)

    def _tool_ended(self, event: ev.ToolEnded, now: float) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        self._seen(program, now)
        call = program.out.pop(event.tool_id, None)
        if call is not None:
            call.started_at = now - event.duration_s
            over = call.over(program, event.duration_s, beside=len(program.out), measured=True, ok=event.ok)
            self._facts.append(over)

    def _declared(self, event: ev.ProgramDeclared, now: float) -> None:
        self._open(event, now)

    def _ended(self, event: ev.ProgramEnded, now: float) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        program.over = event.reason
        self._close_if_over(program)

    def _close_if_over(self, program: Life) -> None:
        if program.over and not program.steps_open and self._programs.get(program.id) is program:
            self._close(program, program.over)

    def _reported(self, event: ev.EngineReported, now: float) -> None:
        if event.prefill_tokens_per_s:
            self._prefill[event.engine] = event.prefill_tokens_per_s

    def _engine_lost(self, event: ev.EngineLost, now: float) -> None:
        for program in self._programs.values():
            if program.pin is not None and program.pin.engine == event.engine:
                self._unpin(program, now, "lost", "engine_lost")

    def _done(self, event: ev.DecisionDone, now: float) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        if event.decision == "Pin" and event.outcome == "refused" and program.pin is not None:
            self._unpin(program, now, "refused", event.detail)
        elif event.decision == "Warm" and program.warm is not None:
            if event.outcome == "refused":
                self._warm_over(program, now, "refused")
            else:
                program.warm.done = True
                program.warm.cached_tokens = event.cached_tokens

    # -- decisions

    def _dispatched(self, decision: do.Dispatch, now: float) -> None:
        step = self._steps.get(decision.step)
        if step is None:
            return
        program = step.program
        self._waited(step, now)
        step.engine = decision.engine
        if not step.returns:
            return
        step.returns = False
        pin = program.pin
        if pin is None and decision.reason == KEPT:
            since = step.gap_at if step.gap_at is not None else now
            program.pin = Pinned(decision.engine, since, program.context_tokens, until=now)
            step.hit = self._unpin(program, now, "hit", decision.reason, announced=False)
        elif pin is not None:
            if now > pin.until and decision.expected_cached_tokens == 0:
                self._unpin(program, now, "expired", decision.reason)
            elif pin.engine == decision.engine:
                step.hit = self._unpin(program, now, "hit", decision.reason)
            else:
                self._unpin(program, now, "moved", decision.reason)
        warm = program.warm
        if warm is not None:
            used = warm.decision.engine == decision.engine
            self._warm_over(program, now, ("used" if warm.done else "late") if used else "unused")

    def _aborted(self, decision: do.Abort, now: float) -> None:
        """Its engine is lost: it waits for another one, if it is not over."""
        step = self._steps.get(decision.step)
        if step is not None:
            step.waits_since = now

    def _rejected(self, decision: do.Reject, now: float) -> None:
        step = self._left(decision.step, now)
        if step is not None:
            step.program.failed += 1
            self._close_if_over(step.program)

    def _pinned(self, decision: do.Pin, now: float) -> None:
        program = self._programs.get(decision.program)
        if program is None:
            return
        pin = program.pin
        if pin is not None and pin.engine == decision.engine:
            pin.until, pin.tokens, pin.mode = decision.until, decision.tokens, decision.mode
            return
        if pin is not None:
            self._unpin(program, now, "moved", decision.reason)
        program.pin = Pinned(decision.engine, now, decision.tokens, decision.until, decision.mode)
        self._facts.append(program.pin.made(program, decision.reason))

    def _unpinned(self, decision: do.Unpin, now: float) -> None:
        program = self._programs.get(decision.program)
        if program is None:
            return
        announced = program.pin is not None
        if program.pin is None:  # kept without a word since its gap began
            since = program.gap_at if program.gap_at is not None else now
            program.pin = Pinned(decision.engine, since, program.context_tokens, until=now)
        expired = decision.reason == "expired" or (announced and now >= program.pin.until)
        end: PinEnd = "moved" if decision.reason == MOVED else "expired" if expired else "revoked"
        self._unpin(program, now, end, decision.reason, announced=announced)

    def _unpin(
        self, program: Life, now: float, end: PinEnd, reason: str, *, announced: bool = True
    ) -> PinOver:
        pin = program.pin
        assert pin is not None
        program.pin = None
        over = pin.over(program, now, end, reason, announced=announced)
        self._facts.append(over)
        return over

    def _warmed(self, decision: do.Warm, now: float) -> None:
        program = self._programs.get(decision.program)
        if program is None:
            return
        if program.warm is not None:
            self._warm_over(program, now, "unused")
        program.warm = Warming(decision, now)

    def _warm_over(self, program: Life, now: float, end: WarmEnd) -> None:
        warm = program.warm
        assert warm is not None
        program.warm = None
        self._facts.append(warm.over(program, now, end))

    # -- programs

    def _open(self, event: ev.StepArrived | ev.ProgramDeclared, now: float) -> Life:
        """The program of an event that may be the first of it, with the workflow that the event names."""
        program_id, tenant, workflow = event.program, event.tenant, event.workflow
        program = self._programs.get(program_id)
        if program is not None:
            program.seen_at = now
            program.workflow = workflow or program.workflow
            self._programs.move_to_end(program_id)
            return program
        if len(self._programs) >= self._programs_max:
            self._close(next(iter(self._programs.values())), "forgotten")
        program = self._programs[program_id] = Life(program_id, tenant, event.parent, now)
        program.workflow = workflow
        opened = ProgramOpened(
            program=program_id, tenant=tenant, workflow=workflow, at=now, parent=event.parent
        )
        self._facts.append(opened)
        return program

    def _seen(self, program: Life, now: float) -> None:
        program.seen_at = now
        if program.id in self._programs:
            self._programs.move_to_end(program.id)

    def _close(self, program: Life, reason: str) -> None:
        del self._programs[program.id]
        seen_at, beside = program.seen_at, len(program.out) - 1
        for call in program.out.values():
            self._facts.append(call.over(program, seen_at - call.started_at, beside=beside, censored=True))
        if program.pin is not None:
            self._unpin(program, seen_at, "ended", reason)
        if program.warm is not None:
            self._warm_over(program, seen_at, "ended")
        self._facts.append(program.closed(reason))


_HANDLERS: dict[type[ev.Event], Callable[[Story, Any, float], None]] = {
    ev.StepArrived: Story._step_arrived,
    ev.StepFinished: Story._step_finished,
    ev.StepFailed: Story._step_failed,
    ev.ClientGone: Story._client_gone,
    ev.ToolStarted: Story._tool_started,
    ev.ToolEnded: Story._tool_ended,
    ev.ProgramDeclared: Story._declared,
    ev.ProgramEnded: Story._ended,
    ev.EngineReported: Story._reported,
    ev.EngineLost: Story._engine_lost,
    ev.DecisionDone: Story._done,
}
_DECIDED: dict[type[do.Decision], Callable[[Story, Any, float], None]] = {
    do.Dispatch: Story._dispatched,
    do.Abort: Story._aborted,
    do.Reject: Story._rejected,
    do.Pin: Story._pinned,
    do.Unpin: Story._unpinned,
    do.Warm: Story._warmed,
}
