"""The telemetry of a gateway: figures from steps and from the scheduler's story, and spans where they are wanted.

Rule: called on the requests' path, so nothing here waits, raises or formats text: children are bound once per
(tenant, workflow, engine), and spans are only queued. When metrics and traces are off it does nothing at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client.exposition import choose_encoder

from agentserve.config import TelemetrySettings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core import facts
from agentserve.core.story import PROGRAM_IDLE_S, Story
from agentserve.ports import StepRecord
from agentserve.telemetry.meters import Meters, Number, Pulled, Spread
from agentserve.telemetry.spans import Spans, make_spans

log = logging.getLogger("agentserve.telemetry")

BOUND_MAX = 10_000  # bundles of children kept


class _Bound:
    """The children that a step of one tenant, workflow, engine and outcome touches."""

    __slots__ = ("cached", "output", "prompt", "queue", "step_s", "steps", "ttft")

    def __init__(self, meters: Meters, tenant: str, workflow: str, engine: str, outcome: str) -> None:
        self.steps: Number = meters.child("steps", tenant, workflow, outcome)
        self.queue: Spread = meters.child("queue_seconds", tenant)
        self.ttft: Spread = meters.child("ttft_seconds", tenant, workflow)
        self.step_s: Spread = meters.child("step_seconds", workflow)
        self.prompt: Number = meters.child("prompt_tokens", tenant, engine)
        self.cached: Number = meters.child("cached_tokens", tenant, engine)
        self.output: Number = meters.child("output_tokens", tenant, engine)


class Recorder:
    """Implements `ports.Telemetry`."""

    def __init__(
        self,
        settings: TelemetrySettings | None = None,
        *,
        spans: Spans | None = None,
        version: str = "",
        clock_offset_s: float = 0.0,
        program_idle_s: float = PROGRAM_IDLE_S,
    ) -> None:
        """`clock_offset_s` is what must be added to the scheduler's times to get epoch seconds."""
        self.settings = settings or TelemetrySettings()
        self.meters = Meters(values_max=self.settings.label_values_max)
        self.spans = spans if spans is not None else make_spans(self.settings, clock_offset_s=clock_offset_s)
        self._on = self.settings.metrics
        self._story = Story(program_idle_s=program_idle_s)
        self._bound: dict[tuple[str, str | None, str | None, str], _Bound] = {}
        self._counters: dict[tuple[str, ...], Number] = {}
        self._identified: dict[tuple[str, str], Number] = {}
        self._overhead: Spread = self.meters.child("overhead_seconds")
        self._complained: set[str] = set()
        self._pins_live = 0
        self.meters.child("build_info", version or "unknown").value = 1.0
        self.meters.child("scheduler_healthy").value = 1.0
        self.meters.pull("programs_live", lambda: float(self._story.live))
        self.meters.pull("pins_live", lambda: float(self._pins_live))
        if self.spans is not None:
            lost = self.spans
            self.meters.pull("spans_lost", lambda: float(lost.lost))

    # -- what anybody may record

    def count(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        """Add to a counter."""
        if not self._on:
            return
        key = (name, *labels, *labels.values())
        child = self._counters.get(key)
        if child is None:
            child = self._find(name, labels)
            if child is None:
                return
            if len(self._counters) < BOUND_MAX:
                self._counters[key] = child
        child.value += value

    def observe(self, name: str, value: float, /, *, trace_id: str | None = None, **labels: str) -> None:
        """One more value of a histogram."""
        if self._on and (child := self._find(name, labels)) is not None:
            if trace_id is None:
                child.observe(value)
            else:
                child.observe_traced(value, trace_id, time.time())

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        if self._on and (child := self._find(name, labels)) is not None:
            child.value = value

    def pull(self, name: str, ask: Callable[[], Pulled]) -> None:
        """Ask for a figure at every scrape, where that is better than being told of each change."""
        self.meters.pull(name, ask)

    def _find(self, name: str, labels: dict[str, str]) -> Any:
        try:
            return self.meters.labelled(name, labels)
        except (KeyError, ValueError, TypeError) as error:
            if name not in self._complained and len(self._complained) < 100:
                self._complained.add(name)
                log.error("the metric %s cannot be recorded: %r", name, error)
            self.meters.child("telemetry_errors", "record").value += 1
            return None

    # -- steps

    def step_done(self, record: StepRecord) -> None:
        """A step is over."""
        trace_id = None
        if self.spans is not None:
            trace_id = record.trace_id = self.spans.step(record)
        if not self._on:
            return
        key = (record.tenant, record.workflow, record.engine, record.outcome)
        bound = self._bound.get(key)
        if bound is None:
            bound = _Bound(
                self.meters, record.tenant, record.workflow or "", record.engine or "", record.outcome
            )
            if len(self._bound) < BOUND_MAX:
                self._bound[key] = bound
        bound.steps.value += 1
        arrived_at, sent_at, first_at = record.arrived_at, record.dispatched_at, record.first_byte_at
        if sent_at is not None:
            queued_s = sent_at - arrived_at - record.overhead_s
            if queued_s < 0.0:
                queued_s = 0.0
            if trace_id is None:
                bound.queue.observe(queued_s)
            else:
                bound.queue.observe_traced(queued_s, trace_id, sent_at)
            self._overhead.observe(record.overhead_s)
        if first_at is not None:
            if trace_id is None:
                bound.ttft.observe(first_at - arrived_at)
            else:
                bound.ttft.observe_traced(first_at - arrived_at, trace_id, first_at)
        if record.outcome == "finished":
            ended_at = record.ended_at
            if ended_at is not None:
                if trace_id is None:
                    bound.step_s.observe(ended_at - arrived_at)
                else:
                    bound.step_s.observe_traced(ended_at - arrived_at, trace_id, ended_at)
            bound.prompt.value += record.prompt_tokens
            bound.output.value += record.output_tokens
            if record.cached_tokens:
                bound.cached.value += record.cached_tokens
        who = (record.identity_source, record.relation)
        identified = self._identified.get(who)
        if identified is None:
            identified = self.meters.child("steps_identified", *who)
            if len(self._identified) < BOUND_MAX:
                self._identified[who] = identified
        identified.value += 1

    # -- the scheduler's story

    def watch(self, event: ev.AnyEvent, now: float, decisions: Sequence[do.AnyDecision]) -> None:
        """Give this to `Driver.listen`."""
        if not self._on and self.spans is None:
            return
        try:
            known = self._story.tell(event, now, decisions)
            kind = type(event)
            if kind is ev.TimerFired:
                known = [*known, *self._story.expire(now)]
            for fact in known:
                handler = _FACTS.get(type(fact))
                if handler is not None:
                    handler(self, fact)
                if self.spans is not None:
                    self.spans.fact(fact)
            seen = _EVENTS.get(kind)
            if seen is not None:
                seen(self, event)
        except Exception:
            if "watch" not in self._complained:
                self._complained.add("watch")
                log.exception("telemetry could not follow %s", type(event).__name__)
            self.meters.child("telemetry_errors", "watch").value += 1

    def _program_opened(self, fact: facts.ProgramOpened) -> None:
        self.meters.child("programs_opened", fact.tenant).value += 1

    def _program_closed(self, fact: facts.ProgramClosed) -> None:
        workflow = fact.workflow or ""
        self.meters.child("programs", fact.tenant, workflow, fact.reason).value += 1
        if fact.steps:
            trace_id = self.spans.trace_id(fact.program) if self.spans is not None else None
            self._spread("program_seconds", workflow, fact.seconds, trace_id, fact.at)
            self._spread("program_slowdown", workflow, fact.slowdown, trace_id, fact.at)
            self.meters.child("program_steps", workflow).observe(float(fact.steps))
            # tools that ran beside one another or beside a queue may add up to more than the whole
            model_s = max(fact.seconds - fact.queue_s - fact.tool_s, 0.0)
            for part, seconds in (
                ("queue", fact.queue_s), ("tools", fact.tool_s), ("person", fact.human_s), ("model", model_s)
            ):  # fmt: skip
                self.meters.child("program_part_seconds", workflow, part).value += seconds

    def _spread(self, name: str, workflow: str, value: float, trace_id: str | None, at: float) -> None:
        child: Spread = self.meters.child(name, workflow)
        if trace_id is None:
            child.observe(value)
        else:
            child.observe_traced(value, trace_id, at)

    def _step_over(self, fact: facts.StepOver) -> None:
        if fact.refilled_tokens:
            self.meters.child("refilled_tokens", fact.tenant, fact.engine).value += fact.refilled_tokens
        if fact.saved_s:
            self.meters.child("saved_prefill_seconds", fact.engine).value += fact.saved_s

    def _tool_over(self, fact: facts.ToolCallOver) -> None:
        outcome = "open" if fact.censored else "ok" if fact.ok else "error"
        self.meters.child(
            "tool_calls", fact.name, "measured" if fact.measured else "inferred", outcome
        ).value += 1
        if not fact.censored:
            self.meters.child("tool_seconds", fact.name).observe(fact.seconds)

    def _pin_made(self, fact: facts.PinMade) -> None:
        self._pins_live += 1
        self.meters.child("pins_made", fact.tenant, fact.mode).value += 1
        self.meters.child("pinned_tokens", fact.engine).value += fact.tokens

    def _pin_over(self, fact: facts.PinOver) -> None:
        if fact.announced:
            self._pins_live -= 1
            self.meters.child("pinned_tokens", fact.engine).value -= fact.tokens
        self.meters.child("pins", fact.tenant, fact.mode, fact.end).value += 1
        self.meters.child("pin_token_seconds", fact.tenant, fact.end).value += fact.tokens * fact.held_s
        self.meters.child("pin_seconds", fact.end).observe(fact.held_s)
        if fact.saved_s:
            self.meters.child("pin_saved_seconds", fact.engine).value += fact.saved_s

    def _warm_over(self, fact: facts.WarmOver) -> None:
        self.meters.child("warms", fact.end, "touch" if fact.refresh else "warm").value += 1

    def _engine_reported(self, event: ev.EngineReported) -> None:
        engine = event.engine
        for name, value in (
            ("engine_running", event.running),
            ("engine_waiting", event.waiting),
            ("engine_kv_used_share", event.kv_used_share),
            ("engine_kv_tokens", event.kv_tokens),
            ("engine_preemptions", event.preemptions),
        ):
            if value is not None:
                self.meters.child(name, engine).value = float(value)

    def _engine_lost(self, event: ev.EngineLost) -> None:
        self.meters.child("engine_losses", event.engine).value += 1
        self.meters.child("engine_up", event.engine).value = 0.0

    def _engine_back(self, event: ev.EngineBack) -> None:
        self.meters.child("engine_up", event.engine).value = 1.0

    def _done(self, event: ev.DecisionDone) -> None:
        self.meters.child("actions", event.decision, event.outcome).value += 1

    # -- showing

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The figures in the format that the scraper asks for; exemplars come with OpenMetrics."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self.meters.registry)

    # -- traces

    def traceparent(self, program: str, step: str, incoming: str | None) -> str | None:
        """What the engine is told, so that its spans hang under ours; the client's own when traces are off."""
        return incoming if self.spans is None else self.spans.traceparent(program, step, incoming)

    async def start(self) -> None:
        """Start exporting."""
        if self.spans is not None:
            self.spans.start()

    async def stop(self) -> None:
        """Hand over the last spans."""
        if self.spans is not None:
            await self.spans.stop()


_FACTS: dict[type, Callable[[Recorder, Any], None]] = {
    facts.ProgramOpened: Recorder._program_opened,
    facts.ProgramClosed: Recorder._program_closed,
    facts.StepOver: Recorder._step_over,
    facts.ToolCallOver: Recorder._tool_over,
    facts.PinMade: Recorder._pin_made,
    facts.PinOver: Recorder._pin_over,
    facts.WarmOver: Recorder._warm_over,
}
_EVENTS: dict[type, Callable[[Recorder, Any], None]] = {
    ev.EngineReported: Recorder._engine_reported,
    ev.EngineLost: Recorder._engine_lost,
    ev.EngineBack: Recorder._engine_back,
    ev.DecisionDone: Recorder._done,
}
