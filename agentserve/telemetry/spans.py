"""Traces: one for each program, built after the fact and off the requests' path.

    invoke_agent research                     the program, written when it is over
    ├── chat llama-3.1-8b                     a step; what was decided about it as span events
    │   └── queue                             its wait in the proxy
    ├── execute_tool web_search               measured by the client, or inferred from the gap and marked so
    └── invoke_agent reader                   a sub-agent

Rule: the path of a request only decides whether the trace is sampled and puts the record on a bounded queue; a thread
builds the spans. Ids are derived from the program's and the step's names, so that gateways that share nothing write
one trace, and a parent can be written after its children. No text of a prompt ever gets here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import OrderedDict, deque
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from agentserve.config import TelemetrySettings
from agentserve.core import decisions as do
from agentserve.core import facts
from agentserve.errors import ConfigError
from agentserve.ports import StepRecord
from agentserve.telemetry.conventions import Conventions
from agentserve.telemetry.traceparent import derived, parse_traceparent

log = logging.getLogger("agentserve.traces")

PENDING_MAX = 20_000  # records waiting to become spans
PROGRAMS_MAX = 50_000  # programs whose trace is remembered
WAKE_S = 0.25
STOP_S = 5.0
NS = 1_000_000_000
SESSION_CHARS_MAX = 199  # Langfuse takes ASCII under 200


class _Trace:
    """What is remembered of a program's trace."""

    __slots__ = (
        "ended_at", "hex", "last_node", "opened_at", "parent_span", "record", "root", "sampled", "steps",
        "trace_id",
    )  # fmt: skip

    def __init__(self, trace_id: int, root: int, sampled: bool, parent_span: int | None) -> None:
        self.trace_id = trace_id
        self.hex = f"{trace_id:032x}"
        self.root = root
        self.sampled = sampled
        self.parent_span = parent_span
        self.opened_at: float | None = None
        self.ended_at = 0.0
        self.steps = 0
        self.last_node: str | None = None
        self.record: StepRecord | None = None  # the latest, for tenant, workflow and session


class ChosenIds(IdGenerator):
    """Gives the SDK the ids that we derived. Used by one thread."""

    def __init__(self) -> None:
        self.trace_id = 1
        self.span_id = 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Spans:
    """Collects what happens and turns it into spans."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        sample: float = 1.0,
        conventions: Conventions | None = None,
        batched: bool = True,
        pending_max: int = PENDING_MAX,
        clock_offset_s: float = 0.0,
    ) -> None:
        self.lost = 0
        self._names = conventions or Conventions()
        self._threshold = round(sample * 0xFFFF_FFFF_FFFF_FFFF)
        self._pending: deque[StepRecord | facts.AnyFact] = deque()
        self._pending_max = pending_max
        self._offset_s = clock_offset_s
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._parents: OrderedDict[str, str] = OrderedDict()
        self._ids = ChosenIds()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "agentserve"}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter) if batched else SimpleSpanProcessor(exporter)
        )
        self._tracer = self._provider.get_tracer("agentserve")
        self._lock = threading.Lock()  # one builder at a time
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._batched = batched

    # -- on the requests' path

    def step(self, record: StepRecord) -> str | None:
        """Queue a step that is over; its trace id if the trace is sampled."""
        trace = self._trace(record.program, record.traceparent, record.parent)
        if not trace.sampled:
            return None
        self._push(record)
        return trace.hex

    def fact(self, fact: facts.AnyFact) -> None:
        """Queue a tool call or the end of a program."""
        kind = type(fact)
        if kind is facts.ProgramOpened:
            assert isinstance(fact, facts.ProgramOpened)
            if fact.parent is not None:
                self._parents[fact.program] = fact.parent
                if len(self._parents) > PROGRAMS_MAX:
                    self._parents.popitem(last=False)
        elif kind is facts.ToolCallOver or kind is facts.ProgramClosed:
            trace = self._traces.get(fact.program)
            if trace is not None and trace.sampled:
                self._push(fact)
            elif kind is facts.ProgramClosed:  # should it go on, it is traced, or not, as before
                self._traces.pop(fact.program, None)

    def trace_id(self, program: str) -> str | None:
        """The program's trace where it is known and sampled."""
        trace = self._traces.get(program)
        return trace.hex if trace is not None and trace.sampled else None

    def traceparent(self, program: str, step: str, incoming: str | None) -> str:
        """What the engine is told: this step's span in the program's trace."""
        trace = self._trace(program, incoming, None)
        return f"00-{trace.hex}-{derived('step', step, 8):016x}-{'01' if trace.sampled else '00'}"

    def _push(self, item: StepRecord | facts.AnyFact) -> None:
        if len(self._pending) >= self._pending_max:
            self.lost += 1
            return
        self._pending.append(item)
        if self._thread is None and self._batched:
            self.start()

    def _trace(self, program: str, incoming: str | None, parent: str | None) -> _Trace:
        trace = self._traces.get(program)
        if trace is not None:
            self._traces.move_to_end(program)
            return trace
        root = derived("program", program, 8)
        above = parent or self._parents.get(program)
        if above is not None:
            over = self._trace(above, incoming, None)
            trace = _Trace(over.trace_id, root, over.sampled, over.root)
        elif (caller := parse_traceparent(incoming)) is not None:
            # whoever began the trace decided whether it is sampled
            trace = _Trace(caller.trace_id, root, caller.sampled, caller.span_id)
        else:
            trace_id = derived("trace", program, 16)
            trace = _Trace(trace_id, root, (trace_id & 0xFFFF_FFFF_FFFF_FFFF) <= self._threshold, None)
        self._traces[program] = trace
        if len(self._traces) > PROGRAMS_MAX:
            self._traces.popitem(last=False)
        return trace

    # -- off it

    def start(self) -> None:
        """Start the thread that builds spans; the first span does it too."""
        if self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._run, name="agentserve-spans", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Write what is left, open programs included, and close the exporter."""
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._finish)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(WAKE_S)
            self.drain()

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join(STOP_S)
            self._thread = None
        self.drain()
        for program, trace in list(self._traces.items()):
            if trace.sampled and trace.opened_at is not None:
                self._program(program, trace, None)
        self._provider.force_flush(int(STOP_S * 1000))
        self._provider.shutdown()

    def drain(self) -> None:
        """Build the spans of everything that is queued."""
        with self._lock:
            while self._pending:
                item = self._pending.popleft()
                try:
                    self._build(item)
                except Exception:
                    self.lost += 1
                    if self.lost == 1:
                        log.exception("a span could not be built")

    def _build(self, item: StepRecord | facts.AnyFact) -> None:
        trace = self._traces.get(item.program)
        if trace is None:
            self.lost += 1
        elif isinstance(item, StepRecord):
            self._step(item, trace)
        elif isinstance(item, facts.ToolCallOver):
            self._tool(item, trace)
        elif isinstance(item, facts.ProgramClosed):
            self._program(item.program, trace, item)

    def _span(
        self,
        name: str,
        trace: _Trace,
        *,
        span_id: int,
        parent: int | None,
        kind: SpanKind,
        start: float,
        attributes: dict[str, Any],
        links: list[Link] | None = None,
    ) -> Span:
        self._ids.trace_id, self._ids.span_id = trace.trace_id, span_id
        context = None
        if parent is not None:
            flags = TraceFlags(TraceFlags.SAMPLED)
            above = SpanContext(trace.trace_id, parent, is_remote=True, trace_flags=flags)
            context = set_span_in_context(NonRecordingSpan(above))
        return self._tracer.start_span(
            name,
            context,
            kind,
            attributes=self._names.attributes(attributes),
            links=links,
            start_time=int(start * NS),
        )

    def _step(self, record: StepRecord, trace: _Trace) -> None:
        node = record.node or (f"{record.role & 0xFFFF_FFFF:08x}" if record.role else None)
        operation = self._names.operation(record.protocol)
        ended_at = record.ended_at or record.arrived_at
        first_s = record.first_byte_at - record.arrived_at if record.first_byte_at is not None else None
        span = self._span(
            f"{operation} {record.model}".rstrip(),
            trace,
            span_id=derived("step", record.step, 8),
            parent=trace.root,
            kind=SpanKind.CLIENT,
            start=record.arrived_at,
            links=_links(record, trace),
            attributes={
                "operation": operation,
                "provider": "anthropic" if record.protocol == "messages" else "openai",
                "conversation": record.session or record.program,
                "agent_name": record.workflow,
                "model": record.model,
                "stream": record.streamed or None,
                "finish_reasons": (record.finish_reason,) if record.finish_reason else None,
                "first_chunk_s": first_s,
                "input_tokens": record.prompt_tokens,
                "output_tokens": record.output_tokens,
                "cached_tokens": record.cached_tokens,
                "status": record.status or None,
                "error": record.outcome if record.outcome != "finished" else None,
                "session": _session(record),
                "kind": "EMBEDDING" if record.protocol == "embeddings" else "LLM",
                "node": node,
                "node_name": node,
                "node_parent": trace.last_node if trace.last_node != node else None,
                "program": record.program,
                "tenant": record.tenant,
                "step": record.step,
                "index": record.index,
                "relation": record.relation or None,
                "engine": record.engine,
                "source": record.identity_source or None,
                "confidence": record.identity_confidence,
                "gap_s": record.gap_s,
                "expected_cached": record.expected_cached_tokens or None,
                "reason": record.reason or None,
            },
        )
        for decision in record.decisions:
            span.add_event(
                f"agentserve.{type(decision).__name__.lower()}",
                self._names.attributes(_decided(decision)),
                int(_decided_at(decision, record) * NS),
            )
        if record.outcome != "finished":
            span.set_status(Status(StatusCode.ERROR, record.error or record.outcome))
        self._queue(record, trace)
        span.end(int(max(ended_at, record.arrived_at) * NS))
        trace.last_node = node
        trace.steps += 1
        trace.record = record
        trace.opened_at = (
            record.arrived_at if trace.opened_at is None else min(trace.opened_at, record.arrived_at)
        )
        trace.ended_at = max(trace.ended_at, ended_at)

    def _queue(self, record: StepRecord, trace: _Trace) -> None:
        sent_at = record.dispatched_at
        if sent_at is None or sent_at <= record.arrived_at:
            return
        queued_s = max(sent_at - record.arrived_at - record.overhead_s, 0.0)
        self._span(
            "queue",
            trace,
            span_id=derived("queue", record.step, 8),
            parent=derived("step", record.step, 8),
            kind=SpanKind.INTERNAL,
            start=sent_at - queued_s,
            attributes={"queue_s": queued_s, "reason": record.reason or None, "engine": record.engine},
        ).end(int(sent_at * NS))

    def _tool(self, fact: facts.ToolCallOver, trace: _Trace) -> None:
        start = fact.started_at + self._offset_s
        operation = self._names.operation("tool")
        span = self._span(
            f"{operation} {fact.name}",
            trace,
            span_id=derived("tool", f"{fact.program} {fact.step} {fact.id}", 8),
            parent=trace.root,
            kind=SpanKind.INTERNAL,
            start=start,
            attributes={
                "operation": operation,
                "tool_name": fact.name,
                "tool_call": fact.id,
                "tool_type": "function",
                "kind": "TOOL",
                "session": _session(trace.record) if trace.record is not None else None,
                "program": fact.program,
                "tenant": fact.tenant,
                "inferred": None if fact.measured else True,
                "error": None if fact.ok else "tool_error",
            },
        )
        if not fact.ok:
            span.set_status(Status(StatusCode.ERROR))
        span.end(int((start + fact.seconds) * NS))

    def _program(self, program: str, trace: _Trace, closed: facts.ProgramClosed | None) -> None:
        record = trace.record
        if record is None or trace.opened_at is None:
            return
        whole = record.workflow is not None and record.parent is None
        operation = self._names.operation("workflow" if whole else "agent")
        self._span(
            f"{operation} {record.workflow}" if record.workflow else operation,
            trace,
            span_id=trace.root,
            parent=trace.parent_span,
            kind=SpanKind.INTERNAL,
            start=trace.opened_at,
            attributes={
                "operation": operation,
                "conversation": record.session or program,
                "agent_name": record.workflow,
                "workflow_name": record.workflow if whole else None,
                "session": _session(record),
                "kind": "CHAIN" if whole else "AGENT",
                "program": program,
                "tenant": record.tenant,
                "steps": trace.steps,
                "end_reason": closed.reason if closed is not None else "open",
                "slowdown": closed.slowdown if closed is not None else None,
            },
        ).end(int(trace.ended_at * NS))
        trace.opened_at = None
        trace.steps = 0


def _session(record: StepRecord) -> str:
    name = record.session or record.program
    return name.encode("ascii", "replace").decode()[:SESSION_CHARS_MAX]


def _links(record: StepRecord, trace: _Trace) -> list[Link]:
    """A step that came with a span of its own points at it."""
    caller = parse_traceparent(record.traceparent)
    if caller is None or (caller.trace_id == trace.trace_id and caller.span_id == trace.parent_span):
        return []
    return [Link(SpanContext(caller.trace_id, caller.span_id, is_remote=True))]


def _decided(decision: do.AnyDecision) -> dict[str, Any]:
    return {
        "reason": decision.reason or None,
        "detail": decision.detail or None,
        "engine": getattr(decision, "engine", None),
        "tokens": getattr(decision, "tokens", None),
        "mode": getattr(decision, "mode", None),
        "expected_cached": getattr(decision, "expected_cached_tokens", None) or None,
    }


def _decided_at(decision: do.AnyDecision, record: StepRecord) -> float:
    """Decisions carry no time: a wait is decided on arrival, a dispatch when the step was sent."""
    if isinstance(decision, do.Dispatch) and record.dispatched_at is not None:
        return record.dispatched_at
    return record.arrived_at


def make_spans(settings: TelemetrySettings, *, clock_offset_s: float = 0.0) -> Spans | None:
    """What the settings ask for; None when traces are off, and then they cost nothing."""
    if settings.traces == "off":
        return None
    return Spans(
        ConsoleSpanExporter(out=sys.stdout)
        if settings.traces == "console"
        else _otlp(settings.otlp_endpoint),
        sample=settings.trace_sample,
        conventions=Conventions(settings.semconv),
        clock_offset_s=clock_offset_s,
    )


def _otlp(endpoint: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(
            "telemetry.traces = 'otlp' needs the OTLP exporter",
            remedy="pip install 'agentserve-gateway[otlp]'",
        ) from error
    return OTLPSpanExporter(endpoint=endpoint)
