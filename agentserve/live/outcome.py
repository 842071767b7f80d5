"""What became of a step, for everybody who wants to know: the scheduler's event, the journal's row, the metrics.

Rule: called once at the end of each step, after the client has its bytes or instead of them. It waits for nothing and
keeps little: each program's last end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from agentserve.core import events as ev
from agentserve.core.forecast import classify
from agentserve.core.identity import Outcome
from agentserve.core.ids import ProgramId, StepId
from agentserve.errors import Overloaded
from agentserve.live.exchange import Exchange
from agentserve.live.lengths import Lengths
from agentserve.live.quotas import Quotas
from agentserve.live.wire import Reply
from agentserve.ports import Journal, StepRecord, Telemetry

PROGRAMS_REMEMBERED_MAX = 100_000


class Ledger:
    """Keeps the books of finished steps."""

    def __init__(
        self,
        *,
        journal: Journal,
        telemetry: Telemetry,
        quotas: Quotas,
        now: Callable[[], float],
        lengths: Lengths | None = None,
        workflow: Callable[[ProgramId], str | None] = lambda program: None,
    ) -> None:
        self.lengths = lengths or Lengths()
        self._workflow = workflow  # of a program that was declared with one: its calls need not repeat it
        self._journal = journal
        self._telemetry = telemetry
        self._quotas = quotas
        self._now = now
        self._traceparent = getattr(telemetry, "traceparent", None)  # of a telemetry that makes traces
        self._ended: OrderedDict[str, float] = OrderedDict()  # when programs' last steps did

    def forget(self, program: str) -> None:
        """It is over: when its last step ended does not matter any more."""
        self._ended.pop(program, None)

    def traceparent(self, x: Exchange) -> str | None:
        """What the engine is told of the trace that this step is in."""
        given = x.headers.get("traceparent")
        if self._traceparent is None or x.resolved is None:
            return given
        made: str | None = self._traceparent(x.resolved.program_id, x.step, given)
        return made or given

    # -- ends

    def finished(self, x: Exchange, status: int, reply: Reply, outcome: Outcome) -> ev.StepFinished:
        """The reply is whole; what the scheduler is to be told."""
        call, resolved = x.call, x.resolved
        assert call is not None
        assert resolved is not None
        usage = reply.usage
        if usage is not None:
            prompt_tokens, output_tokens, cached = (
                usage.prompt_tokens,
                usage.output_tokens,
                usage.cached_tokens,
            )
            self.lengths.learn(call, prompt_tokens)
        else:
            prompt_tokens, output_tokens, cached = (
                self.lengths.estimate(call),
                reply.output_tokens_estimate,
                None,
            )
        final = outcome.ended or outcome.final or call.extensions.final
        record = self._record(x, status, "finished" if reply.error is None else "failed")
        record.error = reply.error or ""
        record.prompt_tokens, record.output_tokens, record.cached_tokens = (
            prompt_tokens,
            output_tokens,
            cached,
        )
        record.finish_reason = reply.finish
        record.tools = tuple([tool.name for tool in outcome.tools])
        self._close(x, record, tokens=prompt_tokens + output_tokens)
        return ev.StepFinished(
            step=StepId(x.step),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached,
            tools=pending_tools(reply, outcome) if outcome.tools else (),
            turn_done=outcome.turn_done,
            final=final,
        )

    def failed(self, x: Exchange, status: int, error: str) -> None:
        """The engine, or we, failed the step."""
        record = self._record(x, status, "failed")
        record.error = error[:500]
        self._close(x, record, tokens=0)

    def gone(self, x: Exchange) -> None:
        """The client left."""
        self._close(x, self._record(x, 499, "gone"), tokens=0)

    def rejected(self, x: Exchange, error: Overloaded) -> None:
        """The scheduler refused the step."""
        record = self._record(x, error.status, "rejected")
        record.error = error.message
        self._close(x, record, tokens=0)

    def refused(self, x: Exchange, status: int, error: Exception) -> None:
        """A request got an error as its answer; steps that were scheduled have a record besides."""
        self._telemetry.count("refusals", status=str(status), reason=getattr(error, "code", "engine_error"))

    def retried(self, x: Exchange, error: Exception) -> None:
        """The step goes elsewhere."""
        self._telemetry.count("retries", engine=x.engine)

    def fell_back(self, what: str) -> None:
        """A part of ours failed and the request went on without it."""
        self._telemetry.count("fallbacks", reason=what)

    # -- records

    def _record(self, x: Exchange, status: int, outcome: str) -> StepRecord:
        call, resolved, decision = x.call, x.resolved, x.decision
        assert call is not None
        assert resolved is not None
        before_at = self._ended.get(resolved.program_id)
        ended_at = x.now()
        own_until = x.dispatched_at if x.first_byte_at is not None else None
        gap_s = None if before_at is None else max(x.arrived_at - before_at, 0.0)
        return StepRecord(
            step=x.step,
            program=resolved.program_id,
            tenant=resolved.tenant,
            protocol=x.protocol,
            model=call.model,
            arrived_at=x.arrived_at,
            dispatched_at=x.dispatched_at,
            first_byte_at=x.first_byte_at,
            ended_at=ended_at,
            engine=x.engine or None,
            status=status,
            outcome=outcome,
            index=resolved.step_index,
            parent=resolved.parent_id,
            workflow=call.extensions.workflow or self._workflow(resolved.program_id),
            node=call.extensions.node,
            role=resolved.role_fingerprint,
            identity_source=resolved.source,
            identity_confidence=resolved.confidence,
            relation=resolved.relation,
            streamed=call.stream,
            expected_cached_tokens=decision.expected_cached_tokens if decision is not None else 0,
            reason=decision.reason if decision is not None else "",
            detail=decision.detail if decision is not None else "",
            queue_s=x.queue_s,
            overhead_s=x.own_s(ended_at if own_until is None else own_until),
            tries=x.tries,
            traceparent=x.headers.get("traceparent"),
            gap_s=gap_s,
            decisions=tuple(x.reasons),
        )

    def _close(self, x: Exchange, record: StepRecord, *, tokens: int) -> None:
        if x.tokens_counted:
            x.tokens_counted = False
            self._quotas.step_over(record.tenant, record.program, tokens, self._now())
        ended = self._ended
        ended[record.program] = record.ended_at or 0.0
        ended.move_to_end(record.program)
        if len(ended) > PROGRAMS_REMEMBERED_MAX:
            ended.popitem(last=False)
        self._telemetry.step_done(record)
        self._journal.step(record)


def pending_tools(reply: Reply, outcome: Outcome) -> tuple[ev.PendingTool, ...]:
    """The tool calls that are now open, described for the forecast."""
    arguments = {tool.id: tool.arguments for tool in reply.tools}
    found = []
    for tool in outcome.tools:
        call = classify(tool.name, arguments.get(tool.id, ""))
        found.append(
            ev.PendingTool(
                id=tool.id,
                name=call.name,
                argument_class=call.argument_class,
                exact_hash=call.exact_hash,
                pipes=call.pipes,
                chain=call.chain,
                timeout_s=call.timeout_s,
                background=call.background,
                kind=call.kind,
            )
        )
    return tuple(found)
