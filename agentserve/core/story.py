"""What became of programs, tool calls, pins and warms, told from the scheduler's events and decisions.

    story = Story()
    facts = story.tell(event, now, decisions)

Rule: it only looks. The journal, the metrics, the traces and the console all fold the same events through it, so that
"a pin was hit" or "a program took this long" means one thing everywhere. Facts are immutable and come when they are
known; memory is bounded by `programs_max`, and what is forgotten is closed as `forgotten`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.facts import (
    AnyFact,
    PinEnd,
    PinMade,
    PinOver,
    ProgramClosed,
    ProgramOpened,
    StepOver,
    ToolCallOver,
    WarmEnd,
    WarmOver,
)

PROGRAMS_MAX = 200_000
TOOLS_OF_PROGRAM_MAX = 512
PROGRAM_IDLE_S = 1800.0
EXPIRED_AT_ONCE_MAX = 1000
STEPS_MAX = 100_000  # open ones; more means that their ends were not told
LOST_STEP_S = 7200.0  # a step that is open for so long will not be heard of again
KEPT = "kept"  # the reason of a dispatch whose program kept its room on the engine through the gap
RETRIES_MAX = 1  # as the scheduler: a step that fails again is given up
PREFILL_TOKENS_PER_S = 8_000.0  # until the engine says better


class _Pin:
    __slots__ = ("engine", "made_at", "mode", "tokens", "until")

    def __init__(
        self, engine: str, made_at: float, tokens: int, until: float, mode: do.PinMode = "reserved"
    ) -> None:
        self.engine = engine
        self.made_at = made_at
        self.mode: do.PinMode = mode
        self.tokens = tokens
        self.until = until


class _Warm:
    __slots__ = ("cached_tokens", "done", "due", "engine", "made_at", "reason", "refresh", "tokens")

    def __init__(self, decision: do.Warm, now: float) -> None:
        self.engine: str = decision.engine
        self.made_at = now
        self.tokens = decision.tokens
        self.due = decision.due
        self.refresh = decision.refresh
        self.reason = decision.reason
        self.done = False
        self.cached_tokens: int | None = None


class _Out:
    """A tool call that is out."""

    __slots__ = ("started_at", "step", "tool")

    def __init__(self, tool: ev.PendingTool, step: str, started_at: float) -> None:
        self.tool = tool
        self.step = step
        self.started_at = started_at


class _Program:
    __slots__ = (
        "context_tokens", "failed", "gap_at", "human_s", "id", "last_at", "opened_at", "out", "over", "parent", "pin",
        "queue_s", "seen_at", "steps", "steps_open", "tenant", "tool_s", "turn_done", "warm", "workflow",
    )  # fmt: skip

    def __init__(self, program: str, tenant: str, parent: str | None, now: float) -> None:
        self.id = program
        self.tenant = tenant
        self.parent = parent
        self.workflow: str | None = None
        self.opened_at = self.seen_at = self.last_at = now
        self.steps = self.failed = self.steps_open = 0
        self.queue_s = self.human_s = self.tool_s = 0.0
        self.context_tokens = 0
        self.gap_at: float | None = None
        self.turn_done = False
        self.over = ""  # why, once that was told: with its last open step
        self.out: dict[str, _Out] = {}
        self.pin: _Pin | None = None
        self.warm: _Warm | None = None


class _Step:
    __slots__ = (
        "arrived_at",
        "compared",
        "dispatched_at",
        "engine",
        "gap_at",
        "program",
        "retries",
        "returns",
    )

    def __init__(self, program: _Program, now: float, compared: int, gap_at: float | None) -> None:
        self.program = program
        self.arrived_at = now
        self.dispatched_at: float | None = None
        self.engine = ""
        self.compared = compared  # how much of its prompt was computed before
        self.gap_at = gap_at  # when the gap began that it ended
        self.returns = gap_at is not None
        self.retries = 0


class Story:
    """Folds the scheduler's events. Not shared between threads: whoever wants one makes one."""

    def __init__(self, *, programs_max: int = PROGRAMS_MAX, program_idle_s: float = PROGRAM_IDLE_S) -> None:
        self._programs: OrderedDict[str, _Program] = OrderedDict()
        self._steps: dict[str, _Step] = {}
        self._prefill: dict[str, float] = {}
        self._programs_max = programs_max
        self._idle_s = program_idle_s
        self._facts: list[AnyFact] = []

    @property
    def live(self) -> int:
        """Programs that are not over."""
        return len(self._programs)

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
        program = self._open(event.program, event.tenant, event.parent, now)
        if event.workflow is not None:
            program.workflow = event.workflow
        gap_at = program.gap_at
        advances = event.relation not in ("auxiliary", "retry")
        if advances:
            self._returned(program, event, now)
        fresh = event.relation in ("new", "subagent", "compaction", "auxiliary")
        compared = 0 if fresh else program.context_tokens
        if compared > event.prompt_tokens:
            compared = event.prompt_tokens
        self._steps[event.step] = _Step(program, now, compared, gap_at if advances else None)
        program.steps_open += 1
        if len(self._steps) > STEPS_MAX:
            self._left(next(iter(self._steps)), now)

    def _returned(self, program: _Program, event: ev.StepArrived, now: float) -> None:
        """The gap is over: the calls whose results came are done, and others too if a person wrote instead."""
        gap_at = program.gap_at
        if gap_at is not None:
            program.gap_at = None
            if event.human or program.turn_done:
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
                self._tool_over(program, call, seconds, beside=beside, measured=known)
        if event.human:
            for call in out.values():
                self._tool_over(program, call, now - call.started_at, beside=beside, censored=True)
            out.clear()

    def _tool_over(
        self,
        program: _Program,
        call: _Out,
        seconds: float,
        *,
        beside: int = 0,
        measured: bool = False,
        censored: bool = False,
        ok: bool = True,
    ) -> None:
        tool = call.tool
        self._facts.append(
            ToolCallOver(
                program=program.id,
                tenant=program.tenant,
                workflow=program.workflow,
                id=tool.id,
                name=tool.name,
                step=call.step,
                kind=tool.kind,
                argument_class=tool.argument_class,
                exact_hash=tool.exact_hash,
                pipes=tool.pipes,
                chain=tool.chain,
                timeout_s=tool.timeout_s,
                background=tool.background,
                started_at=call.started_at,
                seconds=max(seconds, 0.0),
                measured=measured,
                censored=censored,
                ok=ok,
                beside=beside,
            )
        )

    def _step_finished(self, event: ev.StepFinished, now: float) -> None:
        step = self._left(event.step, now)
        if step is None:
            return
        program = step.program
        program.steps += 1
        cached = event.cached_tokens
        refilled = step.compared - cached if cached is not None and cached < step.compared else 0
        saved_s = cached / self._prefill.get(step.engine, PREFILL_TOKENS_PER_S) if cached else 0.0
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
        program.context_tokens = event.prompt_tokens + event.output_tokens
        program.turn_done = event.turn_done
        if event.final:
            program.over = "final"
        program.gap_at = now
        for tool in event.tools:
            if len(program.out) < TOOLS_OF_PROGRAM_MAX:
                program.out[tool.id] = _Out(tool, event.step, now)
        if program.over:
            self._close_if_over(program)

    def _step_failed(self, event: ev.StepFailed, now: float) -> None:
        open_step = self._steps.get(event.step)
        if open_step is not None and event.retryable and open_step.retries < RETRIES_MAX:
            open_step.retries += 1
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

    def _left(self, step_id: str, now: float) -> _Step | None:
        step = self._steps.pop(step_id, None)
        if step is not None:
            program = step.program
            program.steps_open -= 1
            program.last_at = now
            self._seen(program, now)
        return step

    def _tool_started(self, event: ev.ToolStarted, now: float) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        self._seen(program, now)
        known = program.out.get(event.tool.id)
        if known is not None:
            known.started_at = now
        elif len(program.out) < TOOLS_OF_PROGRAM_MAX:
            program.out[event.tool.id] = _Out(event.tool, "", now)

    def _tool_ended(self, event: ev.ToolEnded, now: float) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        self._seen(program, now)
        call = program.out.pop(event.tool_id, None)
        if call is not None:
            call.started_at = now - event.duration_s
            self._tool_over(
                program, call, event.duration_s, beside=len(program.out), measured=True, ok=event.ok
            )

    def _declared(self, event: ev.ProgramDeclared, now: float) -> None:
        program = self._open(event.program, event.tenant, event.parent, now)
        program.workflow = event.workflow or program.workflow

    def _ended(self, event: ev.ProgramEnded, now: float) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        program.over = event.reason
        self._close_if_over(program)

    def _close_if_over(self, program: _Program) -> None:
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
        program.queue_s += now - (step.dispatched_at or step.arrived_at)
        step.dispatched_at = now
        step.engine = decision.engine
        if not step.returns:
            return
        step.returns = False
        pin = program.pin
        if pin is None and decision.reason == KEPT:
            since = step.gap_at if step.gap_at is not None else now
            program.pin = _Pin(decision.engine, since, program.context_tokens, until=now)
            self._unpin(program, now, "hit", decision.reason, announced=False)
        elif pin is not None:
            if now > pin.until and decision.expected_cached_tokens == 0:
                self._unpin(program, now, "expired", decision.reason)
            elif pin.engine == decision.engine:
                self._unpin(program, now, "hit", decision.reason)
            else:
                self._unpin(program, now, "moved", decision.reason)
        warm = program.warm
        if warm is not None:
            used = warm.engine == decision.engine
            self._warm_over(program, now, ("used" if warm.done else "late") if used else "unused")

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
        program.pin = _Pin(decision.engine, now, decision.tokens, decision.until, decision.mode)
        self._facts.append(
            PinMade(
                program=program.id,
                tenant=program.tenant,
                workflow=program.workflow,
                engine=decision.engine,
                at=now,
                tokens=decision.tokens,
                until=decision.until,
                mode=decision.mode,
                reason=decision.reason,
            )
        )

    def _unpinned(self, decision: do.Unpin, now: float) -> None:
        program = self._programs.get(decision.program)
        if program is None:
            return
        announced = program.pin is not None
        if program.pin is None:  # kept without a word since its gap began
            since = program.gap_at if program.gap_at is not None else now
            program.pin = _Pin(decision.engine, since, program.context_tokens, until=now)
        expired = decision.reason == "expired" or (announced and now >= program.pin.until)
        self._unpin(program, now, "expired" if expired else "revoked", decision.reason, announced=announced)

    def _unpin(
        self, program: _Program, now: float, end: PinEnd, reason: str, *, announced: bool = True
    ) -> None:
        pin = program.pin
        assert pin is not None
        program.pin = None
        rate = self._prefill.get(pin.engine, PREFILL_TOKENS_PER_S)
        self._facts.append(
            PinOver(
                program=program.id,
                tenant=program.tenant,
                workflow=program.workflow,
                engine=pin.engine,
                made_at=pin.made_at,
                at=now,
                tokens=pin.tokens,
                mode=pin.mode,
                end=end,
                reason=reason,
                held_s=max(now - pin.made_at, 0.0),
                saved_s=pin.tokens / rate if end == "hit" else 0.0,
                announced=announced,
            )
        )

    def _warmed(self, decision: do.Warm, now: float) -> None:
        program = self._programs.get(decision.program)
        if program is None:
            return
        if program.warm is not None:
            self._warm_over(program, now, "unused")
        program.warm = _Warm(decision, now)

    def _warm_over(self, program: _Program, now: float, end: WarmEnd) -> None:
        warm = program.warm
        assert warm is not None
        program.warm = None
        self._facts.append(
            WarmOver(
                program=program.id,
                tenant=program.tenant,
                workflow=program.workflow,
                engine=warm.engine,
                made_at=warm.made_at,
                at=now,
                tokens=warm.tokens,
                due=warm.due,
                refresh=warm.refresh,
                end=end,
                cached_tokens=warm.cached_tokens,
                reason=warm.reason,
            )
        )

    # -- programs

    def _open(self, program_id: str, tenant: str, parent: str | None, now: float) -> _Program:
        program = self._programs.get(program_id)
        if program is not None:
            self._seen(program, now)
            return program
        if len(self._programs) >= self._programs_max:
            self._close(next(iter(self._programs.values())), "forgotten")
        program = self._programs[program_id] = _Program(program_id, tenant, parent, now)
        self._facts.append(ProgramOpened(program=program_id, tenant=tenant, at=now, parent=parent))
        return program

    def _seen(self, program: _Program, now: float) -> None:
        program.seen_at = now
        if program.id in self._programs:
            self._programs.move_to_end(program.id)

    def _close(self, program: _Program, reason: str) -> None:
        del self._programs[program.id]
        end = program.last_at
        for call in program.out.values():
            self._tool_over(
                program, call, program.seen_at - call.started_at, beside=len(program.out) - 1, censored=True
            )
        if program.pin is not None:
            self._unpin(program, program.seen_at, "ended", reason)
        if program.warm is not None:
            self._warm_over(program, program.seen_at, "ended")
        seconds = max(end - program.opened_at - program.human_s, 0.0)
        plain = seconds - program.queue_s
        self._facts.append(
            ProgramClosed(
                program=program.id,
                tenant=program.tenant,
                workflow=program.workflow,
                at=end,
                reason=reason,
                opened_at=program.opened_at,
                parent=program.parent,
                steps=program.steps,
                failed_steps=program.failed,
                seconds=seconds,
                queue_s=program.queue_s,
                human_s=program.human_s,
                tool_s=program.tool_s,
                slowdown=seconds / plain if plain > 1e-9 else 1.0,
            )
        )


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
    do.Reject: Story._rejected,
    do.Pin: Story._pinned,
    do.Unpin: Story._unpinned,
    do.Warm: Story._warmed,
}
