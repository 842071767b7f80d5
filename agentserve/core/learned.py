"""Foresight learned from the traffic itself: gaps, output lengths and remaining steps, updated with every event.

Rule: it only joins the forecasters of `core.forecast` to the scheduler's records. What a step teaches is taken
when it ends, what a gap teaches when the program is back, what a program teaches when it is over; a gap whose end
was not seen counts as one that lasted at least so long. What is taught is noted at once and taken in by `settle`, so
that no decision waits for it; there too is foretold what will be asked when the program comes back. Of a workflow that
takes more steps a second than histograms can gain by, a random share teaches (`share`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from agentserve.core import events as ev
from agentserve.core.events import PendingTool
from agentserve.core.forecast import (
    OutputForecaster,
    RemainingForecaster,
    ReturnForecaster,
    StepFacts,
)
from agentserve.core.forecast import (
    Survival as Forecast,
)
from agentserve.core.foresight import Survival
from agentserve.core.program import Program, Step
from agentserve.core.remembered import RememberedOutputs, RememberedReturns, SampledCalibration
from agentserve.core.share import STEPS_PER_S, Share

# A step is charged for this quantile of its output: running out of memory costs more than a little left unused.
OUTPUT_QUANTILE = 0.75
# A program's remaining length is foretold anew once it has taken one more step for so many that it had then.
LOOKS_AGAIN = 6
STEPS_UNKNOWN = 12.0  # before anything is known of any program
# Remaining lengths are foretold ahead for so many finished steps after one was asked for: where nobody waits, none is.
LENGTHS_WANTED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GapEnded:
    """A gap that is over, and what was forecast of it."""

    tools: tuple[str, ...]  # none: a person's turn
    seconds: float
    forecast: Forecast


class _Gap:
    """The same as it is noted down: its program goes on meanwhile, and what is not forecast may never be asked for."""

    __slots__ = ("called", "forecast", "program", "seconds", "steps")

    def __init__(
        self,
        program: Program,
        calls: Mapping[str, PendingTool] | None,
        seconds: float,
        forecast: Forecast | None,
    ) -> None:
        self.program = program
        self.steps = program.steps_done
        self.called = tuple(calls.values()) if calls else ()
        self.seconds = seconds
        self.forecast = forecast


class Learned:
    """Implements `foresight.Foresight`."""

    def __init__(self, *, steps_per_s: float = STEPS_PER_S) -> None:
        self.share = Share(steps_per_s)
        self.returns: ReturnForecaster = RememberedReturns(ReturnForecaster())
        self.outputs = RememberedOutputs(OutputForecaster(), quantile=OUTPUT_QUANTILE)
        self.remaining = RemainingForecaster()
        self.gaps_calibration = SampledCalibration()
        self.outputs_calibration = SampledCalibration()
        self._gap_ended: _Gap | None = None
        self._lengths_wanted = 0
        self._lessons: list[Callable[[], None]] = []  # of the last event
        self._learners: dict[type[ev.Event], Callable[[Any, Program, Step | None, float], None]] = {
            ev.StepArrived: self._arrived,
            ev.StepFinished: self._finished,
            ev.ProgramDeclared: self._declared,
            ev.ProgramEnded: self._ended,
            ev.ToolStarted: self._tool_started,
        }

    def learn(self, event: ev.AnyEvent, program: Program | None, step: Step | None, now: float) -> None:
        learner = self._learners.get(type(event))
        if learner is not None and program is not None:
            learner(event, program, step, now)

    def settle(self) -> None:
        """Take in what was taught, in the order in which it was."""
        if not self._lessons:
            return
        lessons, self._lessons = self._lessons, []
        for lesson in lessons:
            lesson()

    def _later(self, teach: Callable[..., None], /, *args: Any, **facts: Any) -> None:
        self._lessons.append(partial(teach, *args, **facts))

    # -- asked

    def output_tokens(self, step: Step) -> float:
        limit = step.output_tokens_max
        tokens = self._output_tokens(step.program, limit)
        return tokens if limit is None or tokens <= limit else float(limit)

    def _output_tokens(self, program: Program, limit: int | None) -> float:
        return self.outputs.tokens(
            tenant=program.tenant,
            workflow=program.workflow,
            role=program.role,
            tokens_max=limit,
            program=program.id,
        )

    def gap(self, program: Program, now: float) -> Survival:
        calls = tuple(program.calls.values()) if program.calls else ()
        return self._gap(program, calls, program.steps_done)

    def _gap(self, program: Program, calls: Sequence[PendingTool], steps: int) -> Forecast:
        return self.returns.predict(
            tenant=program.tenant, program=program.id, calls=calls, workflow=program.workflow, steps=steps
        )

    def steps_left(self, program: Program) -> float:
        self._lengths_wanted = LENGTHS_WANTED
        return self._steps_left(program)

    def _steps_left(self, program: Program) -> float:
        if program.steps_left_told is not None:
            return max(program.steps_left_told, 1.0)
        said = program.steps_left_said
        if said is not None:
            since = program.steps_done - said[0]
            if since * LOOKS_AGAIN <= said[0]:
                return max(said[1] - since, 1.0)
        left = self.remaining.steps_left(tenant=program.tenant, program=program.id, continues=True)
        if left is None:
            return STEPS_UNKNOWN
        median = max(left.quantile(0.5), 1.0)
        program.steps_left_said = (program.steps_done, median)
        return median

    # -- taught

    def _arrived(self, event: ev.StepArrived, program: Program, step: Step | None, now: float) -> None:
        self._gap_ended = None
        if event.relation == "auxiliary":
            return
        if program.steps_done == 0:
            self._later(
                self.remaining.begin,
                tenant=program.tenant,
                program=program.id,
                workflow=program.workflow,
                role=program.role,
                tools_offered=program.tools_offered,
                system_tokens=program.shared_tokens,
                steps_declared=program.steps_left_told or 0.0,
            )
        if program.gap_started_at is not None and program.teaches:
            took = event.took(program.calls) if event.measured and program.calls else {}
            self._gap_over(program, now, took=took)

    def _gap_over(
        self,
        program: Program,
        now: float,
        *,
        censored: bool = False,
        given_up: bool = False,
        took: Mapping[str, float] | None = None,
    ) -> None:
        assert program.gap_started_at is not None
        # what an oracle said in its place teaches nothing of these forecasts
        forecast = program.survival if isinstance(program.survival, Forecast) else None
        judged = not censored and self.gaps_calibration.due()
        gap = _Gap(program, program.calls, now - program.gap_started_at, forecast)
        if judged or forecast is not None:
            self._gap_ended = gap
        self._lessons.append(partial(self._gap_was, gap, judged, censored, given_up, took))

    def _gap_was(
        self, gap: _Gap, judged: bool, censored: bool, given_up: bool, took: Mapping[str, float] | None
    ) -> None:
        program, calls = gap.program, gap.called
        if judged:
            self.gaps_calibration.observe(self._forecast_of(gap), gap.seconds)
        # of parallel calls the gap teaches about the one that ended last: known where all were measured
        last = None
        if took and len(took) == len(calls) > 1:
            last = max(range(len(calls)), key=lambda at: took[calls[at].id])
        self.returns.observe(
            tenant=program.tenant,
            program=program.id,
            calls=calls,
            workflow=program.workflow,
            seconds=gap.seconds,
            steps=gap.steps,
            censored=censored,
            given_up=given_up,
            last=last,
        )

    def _forecast_of(self, gap: _Gap) -> Forecast:
        """What was forecast of it, or would have been."""
        if gap.forecast is None:
            gap.forecast = self._gap(gap.program, gap.called, gap.steps)
        return gap.forecast

    @property
    def gap_ended(self) -> GapEnded | None:
        """That the latest step to arrive ended, where it was forecast: by the scheduler, or as one in a few to be
        judged."""
        gap = self._gap_ended
        if gap is None:
            return None
        tools = tuple(dict.fromkeys(call.name for call in gap.called))
        return GapEnded(tools=tools, seconds=gap.seconds, forecast=self._forecast_of(gap))

    def _finished(self, event: ev.StepFinished, program: Program, step: Step | None, now: float) -> None:
        assert step is not None
        if step.relation == "auxiliary":
            return
        program.teaches = self.share.of_step(program, now)
        if program.teaches and not event.tools and not event.final:  # which may be asked about at once
            self.returns.turn_ended(
                tenant=program.tenant, workflow=program.workflow, steps=program.steps_done
            )
        self._lessons.append(partial(self._step_was, event, program, step, now))

    def _step_was(self, event: ev.StepFinished, program: Program, step: Step, now: float) -> None:
        dispatched = step.dispatched_at if step.dispatched_at is not None else now
        self._went_on(event, program, dispatched, now)  # of every program: what is left of it may be asked
        if not program.teaches:
            return
        limit = step.output_tokens_max
        if self.outputs_calibration.due():
            self._judge_output(program, limit, float(max(event.output_tokens, 1)))
        self.outputs.observe(
            tenant=program.tenant,
            tokens=event.output_tokens,
            workflow=program.workflow,
            role=program.role,
            tokens_max=limit,
            program=program.id,
            truncated=limit is not None and event.output_tokens >= limit,
        )
        self._foretell(program, limit)

    def _went_on(self, event: ev.StepFinished, program: Program, dispatched: float, now: float) -> None:
        facts = StepFacts(
            input_tokens=event.prompt_tokens,
            output_tokens=event.output_tokens,
            cached_tokens=event.cached_tokens or 0,
            started_s=dispatched - program.created_at,
            llm_s=now - dispatched,
            calls=event.tools,
            human=event.turn_done,
        )
        self.remaining.step(tenant=program.tenant, program=program.id, facts=facts)

    def _foretell(self, program: Program, limit: int | None) -> None:
        """What is asked when it comes back: it is remembered until then."""
        if program.ended:
            return
        self._output_tokens(program, limit)
        if self._lengths_wanted:
            self._lengths_wanted -= 1
            self._steps_left(program)

    def _judge_output(self, program: Program, limit: int | None, tokens: float) -> None:
        foretold = self.outputs.predict(
            tenant=program.tenant,
            workflow=program.workflow,
            role=program.role,
            tokens_max=limit,
            program=program.id,
        )
        self.outputs_calibration.observe(foretold, tokens)

    def _tool_started(self, event: ev.ToolStarted, program: Program, step: Step | None, now: float) -> None:
        if event.expected_s is not None:
            self.returns.gaps.hint(
                tenant=program.tenant,
                client=program.workflow or program.tenant,
                call=event.tool,
                seconds=event.expected_s,
                program=program.id,
            )

    def _declared(self, event: ev.ProgramDeclared, program: Program, step: Step | None, now: float) -> None:
        if event.steps_expected is not None:
            self._later(
                self.remaining.begin,
                tenant=program.tenant,
                program=program.id,
                workflow=program.workflow,
                role=program.role,
                steps_declared=event.steps_expected,
            )

    def _ended(self, event: ev.ProgramEnded, program: Program, step: Step | None, now: float) -> None:
        if program.gap_started_at is not None and program.teaches:
            if event.reason not in ("final", "told"):
                # who failed, or was forgotten for want of room, was not given up for not coming back
                self._gap_over(program, now, censored=True, given_up=event.reason == "idle")
            elif not program.calls and event.reason == "told":
                self._later(
                    self.returns.turn_was_last,
                    tenant=program.tenant,
                    workflow=program.workflow,
                    steps=program.steps_done,
                )
        if event.reason == "forgotten" or not self.share.of_program(program):
            self._later(self.remaining.forget, tenant=program.tenant, program=program.id)
        else:
            self._later(self.remaining.finish, tenant=program.tenant, program=program.id)
        self._later(self.returns.forget_program, program.id, tenant=program.tenant)
        self._later(self.outputs.forget_program, program.id)

    # -- kept

    def states(self) -> Mapping[str, Callable[[], bytes]]:
        """What a store keeps, by name."""

        def settled(kept: Callable[[], bytes]) -> Callable[[], bytes]:
            def dump() -> bytes:
                self.settle()
                return kept()

            return dump

        return {
            "returns": settled(lambda: self.returns.to_bytes()),
            "outputs": settled(lambda: self.outputs.to_bytes()),
            "remaining": settled(lambda: self.remaining.to_bytes()),
        }

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Take back what was kept; what is missing or of another version starts empty."""
        self.settle()
        if "returns" in states:
            self.returns = RememberedReturns(ReturnForecaster.from_bytes(states["returns"]))
        if "outputs" in states:
            self.outputs = RememberedOutputs(
                OutputForecaster.from_bytes(states["outputs"]), quantile=OUTPUT_QUANTILE
            )
        if "remaining" in states:
            self.remaining = RemainingForecaster.from_bytes(states["remaining"])
