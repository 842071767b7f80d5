"""The telemetry of a gateway: figures from steps and from the scheduler's story, and spans where they are wanted.

Rule: called on the requests' path, so nothing here waits, raises or formats text: children are bound once per
(tenant, workflow, engine), and spans are only queued. When metrics and traces are off it only tells the story.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client.exposition import choose_encoder

from agentserve.config import TelemetrySettings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core import facts
from agentserve.core.lives import KeptLife
from agentserve.core.story import PROGRAM_IDLE_S, PROGRAMS_MAX, Story
from agentserve.ports import StepRecord
from agentserve.telemetry.meters import Meters, Number, Pulled, Spread
from agentserve.telemetry.spans import Spans, make_spans
from agentserve.telemetry.tally import Tally

log = logging.getLogger("agentserve.telemetry")

# shown while there is such an engine
OF_ENGINES = (
    "engine_up", "engine_running", "engine_waiting", "engine_kv_used_share", "engine_kv_tokens", "engine_preemptions"
)  # fmt: skip
COUNTERS_MAX = 10_000  # that were asked for by their labels


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
        programs_max: int = PROGRAMS_MAX,
        prefill: Callable[[str], float | None] = lambda engine: None,
    ) -> None:
        """`clock_offset_s` is what must be added to the scheduler's times to get epoch seconds; `prefill` is the rate
        at which an engine was seen to prefill."""
        self.settings = settings or TelemetrySettings()
        self.meters = Meters(values_max=self.settings.label_values_max)
        self.spans = spans if spans is not None else make_spans(self.settings, clock_offset_s=clock_offset_s)
        self._on = self.settings.metrics
        self._story = Story(programs_max=programs_max, program_idle_s=program_idle_s, prefill=prefill)
        self._tally = Tally(self.meters)
        self._counters: dict[tuple[str, ...], Number] = {}
        self._complained: set[str] = set()
        self._listeners: list[Callable[[facts.AnyFact], None]] = []
        self._pins_live = 0
        self.meters.child("build_info", version or "unknown").value = 1.0
        self.meters.child("scheduler_healthy").value = 1.0
        self.meters.pull("programs_live", lambda: float(self._story.live))
        self.meters.pull("pins_live", lambda: float(self._pins_live))
        if self.spans is not None:
            lost = self.spans
            self.meters.pull("spans_lost", lambda: float(lost.lost))

    def restore(self, kept: Iterable[KeptLife]) -> None:
        """Take up the programs that an earlier run left open."""
        self._story.restore(kept)

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
            if len(self._counters) < COUNTERS_MAX:
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
        if self.spans is not None:
            record.trace_id = self.spans.step(record)
        if self._on:
            self._tally.note(record)

    # -- the scheduler's story

    def on_fact(self, listener: Callable[[facts.AnyFact], None]) -> None:
        """Be told each fact of the story, but of steps, whose records say more."""
        self._listeners.append(listener)

    def watch(self, event: ev.AnyEvent, now: float, decisions: Sequence[do.AnyDecision]) -> None:
        """Give this to `Driver.listen`."""
        try:
            known = self._story.tell(event, now, decisions)
            kind = type(event)
            if kind is ev.TimerFired:
                known = [*known, *self._story.expire(now)]
            for fact in known:
                if type(fact) is not facts.StepOver:
                    self._known(fact)
                elif self._on:
                    self._tally.note(fact)
            if self._on:
                for decision in decisions:
                    self._tally.note(decision)
                if kind in _EVENTS:
                    _EVENTS[kind](self, event)
        except Exception:
            if "watch" not in self._complained:
                self._complained.add("watch")
                log.exception("telemetry could not follow %s", type(event).__name__)
            self.meters.child("telemetry_errors", "watch").value += 1

    def _known(self, fact: facts.AnyFact) -> None:
        for listener in self._listeners:
            listener(fact)
        if self._on:
            _FACTS[type(fact)](self, fact)
        if self.spans is not None:
            self.spans.fact(fact)

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

    def _pin_paid(self, fact: facts.PinPaid) -> None:
        self.meters.child("pin_saved_seconds", fact.over.engine).value += fact.over.saved_s

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
        if event.reason == ev.REMOVED:  # on purpose: no loss, and nobody waits for it to come back
            for name in OF_ENGINES:
                self.meters.families[name].drop(event.engine)
            return
        self.meters.child("engine_losses", event.engine).value += 1
        self.meters.child("engine_up", event.engine).value = 0.0

    def _engine_back(self, event: ev.EngineBack) -> None:
        self.meters.child("engine_losses", event.engine)  # shown as 0, so that a rate sees the first
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
    facts.ToolCallOver: Recorder._tool_over,
    facts.PinMade: Recorder._pin_made,
    facts.PinOver: Recorder._pin_over,
    facts.PinPaid: Recorder._pin_paid,
    facts.WarmOver: Recorder._warm_over,
}
_EVENTS: dict[type, Callable[[Recorder, Any], None]] = {
    ev.EngineReported: Recorder._engine_reported,
    ev.EngineLost: Recorder._engine_lost,
    ev.EngineBack: Recorder._engine_back,
    ev.DecisionDone: Recorder._done,
}
