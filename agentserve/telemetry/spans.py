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
from collections.abc import Callable

from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from agentserve.config import TelemetrySettings
from agentserve.core import facts
from agentserve.errors import ConfigError
from agentserve.ports import StepRecord
from agentserve.telemetry.building import Builder, Trace
from agentserve.telemetry.conventions import Conventions
from agentserve.telemetry.exporting import LastWords, Outbox
from agentserve.telemetry.traceparent import derived, parse_traceparent

log = logging.getLogger("agentserve.traces")

PENDING_MAX = 20_000  # records waiting to become spans
PROGRAMS_MAX = 50_000  # programs whose trace is remembered
WAKE_S = 0.25
STOP_S = 5.0


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
        reason: Callable[[], str] = lambda: "",
    ) -> None:
        self._lost = 0  # before they were built
        self._threshold = round(sample * 0xFFFF_FFFF_FFFF_FFFF)
        self._pending: deque[StepRecord | facts.AnyFact] = deque()
        self._pending_max = pending_max
        self._offset_s = clock_offset_s
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._parents: OrderedDict[str, str] = OrderedDict()
        self._out = Outbox(exporter, batched=batched, reason=reason)
        self._builder = Builder(self._out, conventions=conventions or Conventions())
        self._lock = threading.Lock()  # one builder at a time
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._batched = batched

    @property
    def lost(self) -> int:
        """Everything that did not become a span which somebody took."""
        return self._lost + self._out.lost

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
        """What the engine is told: this step's span in the program's trace. Of a trace that is not sampled no span is
        ever told of, so that its program's stands for them all."""
        trace = self._trace(program, incoming, None)
        if not trace.sampled:
            return trace.unsampled
        return f"00-{trace.hex}-{derived('step', step, 8):016x}-01"

    def _push(self, item: StepRecord | facts.AnyFact) -> None:
        if len(self._pending) >= self._pending_max:
            self._lost += 1
            return
        self._pending.append(item)
        if self._thread is None and self._batched:
            self.start()

    def _trace(self, program: str, incoming: str | None, parent: str | None) -> Trace:
        trace = self._traces.get(program)
        if trace is not None:
            self._traces.move_to_end(program)
            return trace
        root = derived("program", program, 8)
        above = parent or self._parents.get(program)
        if above is not None:
            over = self._trace(above, incoming, None)
            trace = Trace(over.trace_id, root, over.sampled, over.root)
        elif (caller := parse_traceparent(incoming)) is not None:
            # whoever began the trace decided whether it is sampled
            trace = Trace(caller.trace_id, root, caller.sampled, caller.span_id)
        else:
            trace_id = derived("trace", program, 16)
            trace = Trace(trace_id, root, (trace_id & 0xFFFF_FFFF_FFFF_FFFF) <= self._threshold, None)
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
                self._builder.program(program, trace, None)
        self._out.close(STOP_S)

    def drain(self) -> None:
        """Build the spans of everything that is queued."""
        with self._lock:
            while self._pending:
                item = self._pending.popleft()
                try:
                    self._build(item)
                except Exception:
                    self._lost += 1
                    if self._lost == 1:
                        log.exception("a span could not be built")

    def _build(self, item: StepRecord | facts.AnyFact) -> None:
        trace = self._traces.get(item.program)
        if trace is None:
            self._lost += 1
        elif isinstance(item, StepRecord):
            self._builder.step(item, trace)
        elif isinstance(item, facts.ToolCallOver):
            self._builder.tool(item, trace, self._offset_s)
        elif isinstance(item, facts.ProgramClosed):
            self._builder.program(item.program, trace, item)


def make_spans(settings: TelemetrySettings, *, clock_offset_s: float = 0.0) -> Spans | None:
    """What the settings ask for; None when traces are off, and then they cost nothing."""
    if settings.traces == "off":
        return None
    words = LastWords()
    if settings.traces == "console":
        exporter: SpanExporter = ConsoleSpanExporter(
            out=sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n"
        )
    else:
        exporter = _otlp(settings.otlp_endpoint)
        words.listen("opentelemetry.exporter")
        LastWords().listen("opentelemetry.sdk._shared_internal")  # a line for each span that found no room
    return Spans(
        exporter,
        sample=settings.trace_sample,
        conventions=Conventions(settings.semconv),
        clock_offset_s=clock_offset_s,
        reason=lambda: words.said,
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
