"""The scheduler: the one mutator of the core's state. Events in, decisions out.

Rule: it decides and never waits, reads no clock and touches no socket; `now` is an argument, and the same
events at the same times give the same decisions. The records are changed here, then the policy is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from agentserve.core import events as ev
from agentserve.core.board import CLASS_RANK, Board
from agentserve.core.decisions import AnyDecision
from agentserve.core.outputs import Outputs
from agentserve.core.policies.policy import Policy
from agentserve.core.program import CLOSED, DISPATCHED, STARTED, WAITING, Program, Step
from agentserve.core.register import Register
from agentserve.errors import InvariantBroken

RETRIES_MAX = 1
# of the waiting, newest first: one of a lesser class than who arrives is sought among these
SHED_LOOKS_MAX = 256


class Scheduler:
    """Drive it with `handle`, then `settle` at leisure; call again by `next_deadline` with a `TimerFired`."""

    def __init__(self, board: Board, policy: Policy) -> None:
        self.board = board
        self.policy = policy
        self._sequence = 0
        self._outputs = Outputs()
        self._register = Register(board, self._forget)
        self._handlers: dict[type[ev.Event], Callable[[Any, float], None]] = {
            ev.StepArrived: self._step_arrived,
            ev.StepStarted: self._step_started,
            ev.StepFinished: self._step_finished,
            ev.StepFailed: self._step_failed,
            ev.ClientGone: self._client_gone,
            ev.ToolStarted: self._tool_started,
            ev.ToolEnded: self._tool_ended,
            ev.ProgramDeclared: self._program_declared,
            ev.ProgramEnded: self._program_ended,
            ev.HintGiven: self._hint_given,
            ev.EngineReported: self._engine_reported,
            ev.EngineLost: self._engine_lost,
            ev.EngineBack: self._engine_back,
            ev.KvStored: self._kv_stored,
            ev.KvRemoved: self._kv_removed,
            ev.DecisionDone: self._decision_done,
            ev.TimerFired: self._timer_fired,
        }

    # -- the interface

    def handle(self, event: ev.AnyEvent, now: float) -> list[AnyDecision]:
        """Take note of what happened and say what is to be done."""
        board = self.board
        board.foresight.settle()
        self._sequence += 1
        board.cause = f"{type(event).__name__}#{self._sequence}"
        board.out = []
        self._handlers[type(event)](event, now)
        return board.out

    def settle(self) -> None:
        """Learn from the last event: before the next one in any case, but better between them, when nobody waits."""
        self.board.foresight.settle()

    def next_deadline(self) -> float | None:
        """When to send `TimerFired` if nothing else happens before."""
        due = self.policy.deadline()
        board = self.board
        if board.waiting:
            gives_up_at = next(iter(board.waiting.values())).arrived_at + board.limits.queue_timeout_s
            if due is None or gives_up_at < due:
                due = gives_up_at
        if board.programs:
            idle_at = self._register.idle_at()
            if due is None or idle_at < due:
                due = idle_at
        return due

    def check(self) -> None:
        """Every invariant of the records; cheap enough for tests, not for the request's path."""
        self.board.check()
        self.policy.check()

    # -- steps

    def _step_arrived(self, event: ev.StepArrived, now: float) -> None:
        board = self.board
        if event.step in board.steps:
            raise InvariantBroken(f"step {event.step} arrived twice")
        program = self._register.heard_of(event, now)
        step = Step(
            id=event.step,
            program=program,
            arrived_at=now,
            prompt_tokens=event.prompt_tokens,
            output_tokens=0.0,
            output_tokens_max=event.output_tokens_max,
            model=event.model,
            relation=event.relation,
            cause=board.cause,
        )
        step.output_tokens = self._outputs.believed(board.foresight.output_tokens(step))
        if event.relation != "auxiliary":
            self._returned(program, event, now)
        board.foresight.learn(event, program, step, now)
        if event.relation != "auxiliary":
            program.gap_started_at = program.returns_at = program.pending = program.calls = None
            program.survival = None
        program.open_steps[step.id] = step
        board.steps[step.id] = step
        board.waiting[step.id] = step
        if len(board.waiting) > board.limits.waiting_steps_max and not self._shed(step, now):
            return
        self.policy.arrived(step, now)
        if step.state is WAITING and not any(getattr(d, "step", None) == step.id for d in board.out):
            board.wait(step, "queued")

    def _returned(self, program: Program, event: ev.StepArrived, now: float) -> None:
        """The program is back: its gap is over and its shape may have changed."""
        if event.relation == "compaction":
            program.compacted()
        if event.prefix:
            shared = self.board.common.part(event.prefix, program.id, undivided=event.undivided)
            program.begins_with(event.prefix[0], shared, undivided=event.undivided)
        program.role = event.role or program.role
        program.model = event.model
        program.tools_offered = event.tools_offered or program.tools_offered

    def _shed(self, arriving: Step, now: float) -> bool:
        """Too many wait: refuse one, batch before the others. Whether the arriving step may stay."""
        victim, worst = arriving, CLASS_RANK[arriving.program.priority]
        for step in itertools.islice(reversed(self.board.waiting.values()), SHED_LOOKS_MAX):
            if worst == CLASS_RANK["batch"]:
                break
            if CLASS_RANK[step.program.priority] > worst:
                victim, worst = step, CLASS_RANK[step.program.priority]
        self._refuse(victim, now, "overloaded", status=429, known=victim is not arriving)
        return victim is not arriving

    def _refuse(self, step: Step, now: float, reason: str, *, status: int, known: bool = True) -> None:
        """A waiting step, `known` to the policy, is not served: its program is in a gap again, or over with it."""
        program = step.program
        self.board.reject(step, reason, status=status, retry_after_s=self._retry_after())
        self._rests(program, now)
        if known:
            self.policy.closed(step, now, finished=False, engine=None)
        self._drop_if_over(program, now, "final")

    def _retry_after(self) -> float:
        """About how long until a place is free: the mean time a waiting step has waited, at least a second."""
        waiting = self.board.waiting.values()
        oldest, newest = next(iter(waiting)), next(reversed(waiting))  # who is refused waits still
        return max(1.0, (newest.arrived_at - oldest.arrived_at) / 2)

    def _step_started(self, event: ev.StepStarted, now: float) -> None:
        step = self.board.steps.get(event.step)
        if step is None or step.state is not DISPATCHED:
            return
        step.state = STARTED
        step.started_at = now
        self.policy.started(step, now)

    def _step_finished(self, event: ev.StepFinished, now: float) -> None:
        board = self.board
        step = board.steps.get(event.step)
        if step is None or not step.in_flight:
            return
        program = step.program
        step.cached_tokens = event.cached_tokens
        engine = self._close(step)
        if engine is not None:
            board.fleet.wrote(
                step, engine, event.prompt_tokens, event.output_tokens, event.cached_tokens, now
            )
        if step.dispatched_at is not None:
            program.attained_s += now - step.dispatched_at
        program.output_tokens_total += event.output_tokens
        self._outputs.finished(event.output_tokens)
        if step.relation != "auxiliary":
            program.steps_done += 1
            program.learns_what_it_carries(step)
            program.context_tokens = event.prompt_tokens + event.output_tokens
            program.turn_done = event.turn_done
            program.pending = program.calls = {t.id: t for t in event.tools} or None
            if program.steps_left_told is not None:
                program.steps_left_told = max(program.steps_left_told - 1, 0.0)
            if event.final:
                program.ended = True
        self._register.touch(program, now)
        board.foresight.learn(event, program, step, now)
        self._rests(program, now)
        self.policy.closed(step, now, finished=True, engine=engine)
        self._drop_if_over(program, now, "final")

    def _step_failed(self, event: ev.StepFailed, now: float) -> None:
        step = self.board.steps.get(event.step)
        if step is None or (event.retryable and not step.in_flight):
            return
        if event.retryable and step.retries < RETRIES_MAX:
            self._requeue(step, now)
            return
        self._abandon(step, event, now)  # also one that waits: nobody would take its place any more

    def _client_gone(self, event: ev.ClientGone, now: float) -> None:
        step = self.board.steps.get(event.step)
        if step is None:
            return
        if step.in_flight:
            self.board.abort(step, "client_gone")
        self._abandon(step, event, now)

    def _abandon(self, step: Step, event: ev.AnyEvent, now: float) -> None:
        program = step.program
        engine = self._close(step)
        if engine is not None:
            engine.written += max(step.prompt_tokens - step.expected_cached, 0)
        self.board.foresight.learn(event, program, step, now)
        self._rests(program, now)
        self.policy.closed(step, now, finished=False, engine=engine)
        self._drop_if_over(program, now, "final")

    def _rests(self, program: Program, now: float) -> None:
        """Once nothing of it is open a gap begins, unless an auxiliary step only came between."""
        if program.idle and not program.ended and program.gap_started_at is None:
            program.gap_started_at = now
            program.returns_at = program.survival = None

    def _close(self, step: Step) -> Any:
        board = self.board
        engine = board.fleet.left(step)
        board.waiting.pop(step.id, None)
        del board.steps[step.id]
        del step.program.open_steps[step.id]
        step.state = CLOSED
        return engine

    def _requeue(self, step: Step, now: float) -> None:
        """Once more from the start, elsewhere: no byte of it had reached the client."""
        engine = self.board.fleet.left(step)
        step.retries += 1
        step.state = WAITING
        step.engine = None
        step.dispatched_at = None
        step.arrived_at = now
        self.board.waiting[step.id] = step
        self.policy.closed(step, now, finished=False, engine=engine)
        self.policy.arrived(step, now)

    # -- programs

    def _program_declared(self, event: ev.ProgramDeclared, now: float) -> None:
        program = self._register.heard_of(event, now)
        if event.steps_expected is not None:
            program.steps_left_told = max(event.steps_expected - program.steps_done, 0.0)
        self.board.foresight.learn(event, program, None, now)

    def _program_ended(self, event: ev.ProgramEnded, now: float) -> None:
        program = self.board.programs.get(event.program)
        if program is not None:
            self._forget(program, now, event.reason)

    def _drop_if_over(self, program: Program, now: float, reason: str) -> None:
        if not program.ended or program.open_steps:
            return
        event = ev.ProgramEnded(program=program.id, reason=reason)
        self.board.foresight.learn(event, program, None, now)
        self.policy.ended(program, now)
        del self.board.programs[program.id]

    def _forget(self, program: Program, now: float, reason: str) -> None:
        """Nothing comes of it any more; what runs of it may end."""
        program.ended = True
        self._drop_if_over(program, now, reason)

    def _tool_started(self, event: ev.ToolStarted, now: float) -> None:
        program = self.board.programs.get(event.program)
        if program is None:
            return
        self._register.touch(program, now)
        tool = event.tool
        known = (program.pending or {}).get(tool.id)
        if known is not None:  # the reply told more of the call than the SDK does, which sees no arguments
            tool = msgspec.structs.replace(
                known,
                background=tool.background or known.background,
                timeout_s=tool.timeout_s or known.timeout_s,
            )
        program.pending = {**(program.pending or {}), tool.id: tool}
        calls = program.calls or {}
        if all(tool.name != call.name for call in calls.values()):
            program.calls = {**calls, tool.id: tool}
        self.board.foresight.learn(event, program, None, now)
        program.survival = None  # more is known of the gap
        self.policy.hinted(program, now)

    def _tool_ended(self, event: ev.ToolEnded, now: float) -> None:
        program = self.board.programs.get(event.program)
        if program is None:
            return
        self._register.touch(program, now)
        self.board.foresight.learn(event, program, None, now)
        left = {k: v for k, v in (program.pending or {}).items() if k != event.tool_id}
        program.pending = left or None
        if not left and program.idle:
            program.returns_at = now
        self.policy.hinted(program, now)

    def _hint_given(self, event: ev.HintGiven, now: float) -> None:
        program = self.board.programs.get(event.program)
        if program is None:
            return
        self._register.touch(program, now)
        if event.returns_in_s is not None:
            program.returns_at = now + event.returns_in_s
        if event.steps_left is not None:
            program.steps_left_told = event.steps_left
        if event.compacted:
            program.context_tokens = program.shared_tokens
            program.compacted()
        self.board.foresight.learn(event, program, None, now)
        self.policy.hinted(program, now)

    # -- engines

    def _engine_reported(self, event: ev.EngineReported, now: float) -> None:
        engine = self.board.fleet.add(event.engine)
        engine.says(event)
        self.policy.engine_changed(engine, now)

    def _engine_lost(self, event: ev.EngineLost, now: float) -> None:
        engine = self.board.fleet.get(event.engine)
        if engine is None or not engine.up:
            return
        engine.up = False
        self.board.fleet.forget(engine, self.board.programs.values())
        stranded = [s for s in engine.steps.values() if s.state is DISPATCHED]
        self.policy.engine_changed(engine, now)
        for step in stranded:
            self.board.abort(step, "engine_lost")
            if step.retries < RETRIES_MAX:
                self._requeue(step, now)

    def _engine_back(self, event: ev.EngineBack, now: float) -> None:
        engine = self.board.fleet.add(event.engine)
        self.board.fleet.forget(engine, self.board.programs.values())
        engine.up = True
        engine.draining = False
        self.policy.engine_changed(engine, now)

    def _kv_stored(self, event: ev.KvStored, now: float) -> None:
        program = self.board.programs.get(event.program)
        engine = self.board.fleet.get(event.engine)
        if program is not None and engine is not None:
            self.board.fleet.told(program, engine, event.tokens)
            if program.home == engine.id:
                program.home_clock = engine.written

    def _kv_removed(self, event: ev.KvRemoved, now: float) -> None:
        program = self.board.programs.get(event.program)
        engine = self.board.fleet.get(event.engine)
        if program is None or engine is None:
            return
        self.board.fleet.told(program, engine, event.tokens_left)

    def _decision_done(self, event: ev.DecisionDone, now: float) -> None:
        program = self.board.programs.get(event.program)
        engine = self.board.fleet.get(event.engine)
        if program is None or engine is None:
            return
        if event.decision == "Pin" and event.outcome == "refused":
            engine.pin_mode = "reserved"
        if event.decision == "Warm" and event.outcome == "accepted" and program.home == engine.id:
            self.board.fleet.warmed(program, engine, event.prompt_tokens, event.cached_tokens)

    def _timer_fired(self, event: ev.TimerFired, now: float) -> None:
        board = self.board
        while board.waiting:
            step = next(iter(board.waiting.values()))
            if step.arrived_at + board.limits.queue_timeout_s > now:
                break
            self._refuse(step, now, "queue_timeout", status=503)
        for program in self._register.idle_too_long(now):
            self._forget(program, now, "idle")
        self.policy.tick(now)
