"""Records made into spans: a program, its steps and their queueing, its tool calls.

Rule: one thread at a time builds. Ids are derived from names, so that whoever builds a span builds the same one. What
spans are called is said in `conventions`, what is sampled in `spans`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from agentserve.core import decisions as do
from agentserve.core import facts
from agentserve.ports import StepRecord
from agentserve.telemetry.conventions import Conventions
from agentserve.telemetry.exporting import Outbox
from agentserve.telemetry.traceparent import derived, parse_traceparent

NS = 1_000_000_000
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
WELL, ILL = Status(), Status(StatusCode.ERROR)
SCOPE = InstrumentationScope("agentserve")
WAIT_S_MIN = 1e-3  # between two tries: less is no wait
SESSION_CHARS_MAX = 199  # Langfuse takes ASCII under 200


class Trace:
    """What is remembered of a program's trace."""

    __slots__ = (
        "ended_at", "hex", "last_node", "opened_at", "parent_span", "record", "root", "sampled", "steps",
        "trace_id", "unsampled",
    )  # fmt: skip

    def __init__(self, trace_id: int, root: int, sampled: bool, parent_span: int | None) -> None:
        self.trace_id = trace_id
        self.hex = f"{trace_id:032x}"
        self.unsampled = f"00-{self.hex}-{root:016x}-00"
        self.root = root
        self.sampled = sampled
        self.parent_span = parent_span
        self.opened_at: float | None = None
        self.ended_at = 0.0
        self.steps = 0
        self.last_node: str | None = None
        self.record: StepRecord | None = None  # the latest, for tenant, workflow and session


class Builder:
    """Builds spans and puts them into the outbox. All of a span is known when it is built, so it is made whole: by a
    tracer it would be started, changed under a lock and ended, at four times the cost."""

    def __init__(self, out: Outbox, *, conventions: Conventions) -> None:
        self._names = conventions
        self._resource = Resource.create({"service.name": "agentserve"})
        self._out = out

    def _span(
        self,
        name: str,
        trace: Trace,
        *,
        span_id: int,
        parent: int | None,
        kind: SpanKind,
        start: float,
        end: float,
        attributes: dict[str, Any],
        events: Sequence[Event] = (),
        links: Sequence[Link] = (),
        status: Status = WELL,
    ) -> None:
        above = None
        if parent is not None:
            above = SpanContext(trace.trace_id, parent, is_remote=True, trace_flags=SAMPLED)
        self._out.put(
            ReadableSpan(
                name,
                SpanContext(trace.trace_id, span_id, is_remote=False, trace_flags=SAMPLED),
                above,
                self._resource,
                self._names.attributes(attributes),
                events,
                links,
                kind,
                status=status,
                start_time=int(start * NS),
                end_time=int(end * NS),
                instrumentation_scope=SCOPE,
            )
        )

    def step(self, record: StepRecord, trace: Trace) -> None:
        """A step that is over, and its wait."""
        node = record.node or (f"{record.role & 0xFFFF_FFFF:08x}" if record.role else None)
        operation = self._names.operation(record.protocol)
        ended_at = record.ended_at or record.arrived_at
        first_s = record.first_byte_at - record.arrived_at if record.first_byte_at is not None else None
        events = [
            Event(
                f"agentserve.{type(decision).__name__.lower()}",
                self._names.attributes(_decided(decision)),
                int(at * NS),
            )
            for at, decision in _decided_at(record)
        ]
        self._queue(record, trace)
        self._span(
            f"{operation} {record.model}".rstrip(),
            trace,
            span_id=derived("step", record.step, 8),
            parent=trace.root,
            kind=SpanKind.CLIENT,
            start=record.arrived_at,
            end=max(ended_at, record.arrived_at),
            events=events,
            links=_links(record, trace),
            status=WELL
            if record.outcome == "finished"
            else Status(StatusCode.ERROR, record.error or record.outcome),
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
        trace.last_node = node
        trace.steps += 1
        trace.record = record
        trace.opened_at = (
            record.arrived_at if trace.opened_at is None else min(trace.opened_at, record.arrived_at)
        )
        trace.ended_at = max(trace.ended_at, ended_at)

    def _queue(self, record: StepRecord, trace: Trace) -> None:
        """Its wait; of a step that was sent again, the wait before each time."""
        for n, (start, end, engine) in enumerate(_waits(record)):
            self._span(
                "queue",
                trace,
                span_id=derived("queue", f"{record.step} {n}" if n else record.step, 8),
                parent=derived("step", record.step, 8),
                kind=SpanKind.INTERNAL,
                start=start,
                end=end,
                attributes={"queue_s": end - start, "reason": record.reason or None, "engine": engine},
            )

    def tool(self, fact: facts.ToolCallOver, trace: Trace, offset_s: float) -> None:
        """A tool call that is over; `offset_s` makes its clock the records'."""
        start = fact.started_at + offset_s
        operation = self._names.operation("tool")
        self._span(
            f"{operation} {fact.name}",
            trace,
            span_id=derived("tool", f"{fact.program} {fact.step} {fact.id}", 8),
            parent=trace.root,
            kind=SpanKind.INTERNAL,
            start=start,
            end=start + fact.seconds,
            status=WELL if fact.ok else ILL,
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

    def program(self, program: str, trace: Trace, closed: facts.ProgramClosed | None) -> None:
        """A program up to its latest step: closed, or still open."""
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
            end=trace.ended_at,
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
        )
        trace.opened_at = None
        trace.steps = 0


def _session(record: StepRecord) -> str:
    name = record.session or record.program
    return name.encode("ascii", "replace").decode()[:SESSION_CHARS_MAX]


def _links(record: StepRecord, trace: Trace) -> list[Link]:
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


def _sent(record: StepRecord) -> list[float]:
    """When it was sent to an engine, each time."""
    sent = [attempt.sent_at for attempt in record.tries]
    if record.dispatched_at is not None and record.dispatched_at not in sent[-1:]:
        sent.append(record.dispatched_at)
    return sent


def _waits(record: StepRecord) -> list[tuple[float, float, str | None]]:
    """From when to when it waited, and for which engine: before each time that it was sent, or at last in vain."""
    sent, ended_at = _sent(record), record.ended_at or record.arrived_at
    if not record.tries:
        end = sent[0] if sent else ended_at
        return [(end - record.queue_s, end, record.engine)] if sent or record.queue_s else []
    since = [record.arrived_at, *(attempt.ended_at for attempt in record.tries)]
    until = sent if len(sent) == len(since) else [*sent, ended_at]
    where = [*(attempt.engine for attempt in record.tries), record.engine if until is sent else None]
    waits = zip(since, until, where, strict=True)
    return [(start, end, engine) for start, end, engine in waits if end - start > WAIT_S_MIN]


def _decided_at(record: StepRecord) -> Iterator[tuple[float, do.AnyDecision]]:
    """Decisions carry no time: a dispatch is of when the step was sent, a refusal of its end, and others of its arrival
    or of when its last try was over."""
    sent, over = _sent(record), [attempt.ended_at for attempt in record.tries]
    ended_at = record.ended_at or record.arrived_at
    times = 0
    for decision in record.decisions:
        if isinstance(decision, do.Dispatch):
            yield sent[times] if times < len(sent) else ended_at, decision
            times += 1
        elif isinstance(decision, do.Reject):
            yield ended_at, decision
        elif times:
            yield over[times - 1] if times <= len(over) else ended_at, decision
        else:
            yield record.arrived_at, decision
