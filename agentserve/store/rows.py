"""The rows of tables that only grow: steps, decisions and tool calls.

Rule: a row is a tuple in the order of `COLUMNS`, ready for every driver, so that nothing is looked up by name between
here and the database. Pure: it knows no database, and a test holds `COLUMNS` to the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentserve.core import decisions as do
from agentserve.core import facts
from agentserve.ports import StepRecord
from agentserve.store.words import Words, bounded, clean

OF_PROGRAMS = (do.Pin, do.Unpin, do.Warm)
U64 = 0xFFFF_FFFF_FFFF_FFFF

Row = tuple[Any, ...]

COLUMNS: dict[str, tuple[str, ...]] = {
    "steps": (
        "id", "program", "tenant", "number", "protocol", "model", "engine", "status", "outcome", "error",
        "arrived_at", "dispatched_at", "first_byte_at", "ended_at", "queue_s", "overhead_s",
        "node", "role", "relation", "identity_source", "identity_confidence", "streamed",
        "prompt_tokens", "output_tokens", "cached_tokens", "expected_cached_tokens",
        "finish_reason", "tools", "reason", "detail", "gap_s", "trace_id",
    ),
    "decisions": (
        "at", "program", "step", "kind", "cause", "reason", "detail", "engine", "tokens", "until",
    ),
    "tool_calls": (
        "program", "tenant", "step", "call", "name", "kind", "argument_class", "exact_hash", "pipes", "chain",
        "timeout_s", "background", "started_at", "seconds", "measured", "censored", "ok", "beside",
    ),
}  # fmt: skip


def step_row(record: StepRecord, words: Words, names: Words) -> Row:
    """A step that is over."""
    return (
        record.step,
        names[record.program],
        words[record.tenant],
        record.index,
        record.protocol,
        words[record.model],
        record.engine,
        record.status,
        record.outcome,
        clean(record.error),
        record.arrived_at,
        record.dispatched_at,
        record.first_byte_at,
        record.ended_at,
        record.queue_s,
        record.overhead_s,
        words[record.node],
        f"{record.role & U64:016x}",
        record.relation,
        record.identity_source,
        record.identity_confidence,
        record.streamed,
        bounded(record.prompt_tokens),
        bounded(record.output_tokens),
        bounded(record.cached_tokens),
        record.expected_cached_tokens,
        words[record.finish_reason],
        json_text([words[tool] for tool in record.tools]) if record.tools else "[]",
        record.reason,
        clean(record.detail),
        record.gap_s,
        record.trace_id,
    )


def decision_row(
    decision: do.AnyDecision, now: float, offset_s: float, program_of: Mapping[str, str], names: Words
) -> Row:
    """What was decided `now`; `program_of` a step is known while it is open."""
    step = engine = tokens = until = None
    if isinstance(decision, do.Dispatch):
        step, engine, tokens = decision.step, decision.engine, decision.expected_cached_tokens
    elif isinstance(decision, (do.Wait, do.Reject)):
        step = decision.step
    elif isinstance(decision, do.Abort):
        step, engine = decision.step, decision.engine
    else:
        engine = decision.engine
        if not isinstance(decision, do.Unpin):
            until = (decision.until if isinstance(decision, do.Pin) else decision.due) + offset_s
            tokens = decision.tokens
    program = decision.program if isinstance(decision, OF_PROGRAMS) else program_of.get(decision.step)
    return (
        now + offset_s,
        names[program],
        step,
        type(decision).__name__,
        decision.cause,
        decision.reason,
        clean(decision.detail),
        engine,
        tokens,
        until,
    )


def tool_row(fact: facts.ToolCallOver, offset_s: float, words: Words, names: Words) -> Row:
    """A tool call that is over."""
    return (
        names[fact.program],
        words[fact.tenant],
        fact.step,
        clean(fact.id),
        words[fact.name],
        fact.kind,
        clean(fact.argument_class),
        f"{fact.exact_hash & U64:016x}" if fact.exact_hash is not None else None,
        fact.pipes,
        fact.chain,
        fact.timeout_s,
        fact.background,
        fact.started_at + offset_s,
        fact.seconds,
        fact.measured,
        fact.censored,
        fact.ok,
        fact.beside,
    )


def json_text(value: Any) -> str:
    """A value for a column of JSON: both drivers take its text."""
    return msgspec.json.encode(value).decode()
