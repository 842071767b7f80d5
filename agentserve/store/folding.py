"""From events, steps and facts to the rows of one batch.

Rule: pure work on what was queued, done by the writer's thread; it knows no database. Sums of a program are added up
here, so that a batch touches each program once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core import facts
from agentserve.ports import StepRecord
from agentserve.store.folded import Folded, Values
from agentserve.store.rows import COLUMNS, decision_row, json_text, step_row, tool_row
from agentserve.store.words import Words, clean, name

STEPS_REMEMBERED_MAX = 50_000  # those that are open, and the latest that failed
# Kinds of facts that hold what users wrote: kept only where the operator wants prompts kept.
PRIVATE = frozenset({"prompt", "response", "conversation"})

_encode_events = msgspec.msgpack.Encoder().encode
_encode_body = msgspec.msgpack.Encoder().encode

# An event as the scheduler was told it, when, and what it decided.
Told = tuple[ev.AnyEvent, float, list[do.AnyDecision]]


class Record(NamedTuple):
    """A fact that others tell."""

    kind: str
    row: Mapping[str, Any]


Kept = StepRecord | facts.AnyFact | Record


class Fold:
    """Keeps what spans batches: which program a step is of."""

    def __init__(
        self,
        *,
        clock_offset_s: float = 0.0,
        keep_prompts: bool = False,
        prompt_bytes_max: int = 64 * 1024,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._offset_s = clock_offset_s
        self._keep_prompts = keep_prompts
        self._prompt_bytes_max = prompt_bytes_max
        self._redact = redact
        self._program_of: OrderedDict[str, str] = OrderedDict()
        self._words, self._names = Words(clean), Words(name)

    def fold(self, told: list[Told], records: Iterable[Kept]) -> Folded:
        """One batch. What makes no sense is left out and counted: it must not cost what does."""
        out = Folded()
        for item in told:
            try:
                self._event(item, out)
            except Exception as error:
                out.left_out("event", error)
        if told:
            out.first_at = told[0][1] + self._offset_s
            out.last_at = told[-1][1] + self._offset_s
            known = [item for item in told if isinstance(item[0], ev.Event)]
            out.events, out.journal = _encoded(known, out)
        for record in records:
            try:
                _ROWS[type(record)](self, record, out)
            except Exception as error:
                out.left_out(kind_of(record), error)
        return out

    # -- events

    def _event(self, told: Told, out: Folded) -> None:
        event, now, decisions = told
        kind = type(event)
        if not issubclass(kind, ev.Event):
            raise TypeError(f"{kind.__name__} is no event")
        if kind is ev.StepArrived:
            assert isinstance(event, ev.StepArrived)
            self._program_of[event.step] = event.program
            if len(self._program_of) > STEPS_REMEMBERED_MAX:
                self._program_of.popitem(last=False)
        elif kind is ev.EngineReported or kind is ev.EngineLost or kind is ev.EngineBack:
            self._engine(event, now, out)
        for decision in decisions:
            row = decision_row(decision, now, self._offset_s, self._program_of, self._names)
            out.rows["decisions"].append(row)
        if kind is ev.StepFinished or kind is ev.ClientGone:
            assert isinstance(event, (ev.StepFinished, ev.ClientGone))
            self._program_of.pop(event.step, None)  # nothing is decided about it any more

    def _engine(self, event: ev.AnyEvent, now: float, out: Folded) -> None:
        assert isinstance(event, (ev.EngineReported, ev.EngineLost, ev.EngineBack))
        row = out.engine(event.engine)
        row["seen_at"] = now + self._offset_s
        if isinstance(event, ev.EngineReported):
            for field in ("kv_tokens", "running", "waiting", "kv_used_share"):
                value = getattr(event, field)
                if value is not None:
                    row[field] = value
            if event.models:
                row["models"] = json_text([clean(model) for model in event.models])
            if event.draining:
                row["state"] = "draining"
            elif event.draining is False and row["state"] == "draining":
                row["state"] = "up"
        else:
            row["state"] = "lost" if isinstance(event, ev.EngineLost) else "up"
            row["reason"] = clean(getattr(event, "reason", ""))

    # -- the story's facts

    def _opened(self, fact: facts.ProgramOpened, out: Folded) -> None:
        at = fact.at + self._offset_s
        tenant = self._words[fact.tenant]
        row = out.program(self._names[fact.program], tenant, at)
        row["state"], row["ended_at"], row["end_reason"] = "live", None, None
        row["parent"] = row["parent"] or self._names[fact.parent]
        row["workflow"] = row["workflow"] or self._words[fact.workflow]
        out.tenant(tenant, at)["programs"] += 1

    def _closed(self, fact: facts.ProgramClosed, out: Folded) -> None:
        at = fact.at + self._offset_s
        tenant, workflow = self._words[fact.tenant], self._words[fact.workflow]
        row = out.program(self._names[fact.program], tenant, at)
        row["opened_at"] = min(row["opened_at"], fact.opened_at + self._offset_s)
        row["state"] = "ended"
        row["ended_at"], row["end_reason"] = at, clean(fact.reason)
        row["workflow"] = row["workflow"] or workflow
        for field in ("seconds", "human_s", "tool_s", "slowdown"):
            row[field] = getattr(fact, field)
        if workflow is not None:
            out.workflow(tenant, workflow, at)["programs"] += 1

    def _tool(self, fact: facts.ToolCallOver, out: Folded) -> None:
        out.rows["tool_calls"].append(tool_row(fact, self._offset_s, self._words, self._names))

    def _pin_made(self, fact: facts.PinMade, out: Folded) -> None:
        row = self._pin(fact, fact.at, out)
        row["outcome"] = "open"
        row["until"] = fact.until + self._offset_s if fact.until is not None else None

    def _pin_over(self, fact: facts.PinOver, out: Folded) -> None:
        row = self._pin(fact, fact.made_at, out)
        row["outcome"] = fact.end
        row["ended_at"] = fact.at + self._offset_s
        row["held_s"], row["saved_s"] = fact.held_s, fact.saved_s

    def _pin_paid(self, fact: facts.PinPaid, out: Folded) -> None:
        self._pin_over(fact.over, out)

    def _pin(self, fact: facts.PinMade | facts.PinOver, made_at: float, out: Folded) -> Values:
        at = made_at + self._offset_s
        program = self._names[fact.program]
        row = out.keyed["pins"].setdefault(
            (program, fact.engine, at),
            {
                "program": program,
                "engine": fact.engine,
                "made_at": at,
                "tenant": clean(fact.tenant),
                "until": None,
                "ended_at": None,
                "held_s": 0.0,
                "saved_s": 0.0,
            },
        )
        row["tokens"], row["mode"], row["reason"] = fact.tokens, fact.mode, clean(fact.reason)
        return row

    def _warm(self, fact: facts.WarmOver, out: Folded) -> None:
        program, at = self._names[fact.program], fact.made_at + self._offset_s
        out.keyed["warms"][program, fact.engine, at] = {
            "program": program,
            "engine": fact.engine,
            "made_at": at,
            "tenant": clean(fact.tenant),
            "tokens": fact.tokens,
            "due": fact.due + self._offset_s,
            "refresh": fact.refresh,
            "ended_at": fact.at + self._offset_s,
            "outcome": fact.end,
            "cached_tokens": fact.cached_tokens,
            "reason": clean(fact.reason),
        }

    # -- steps

    def _step(self, record: StepRecord, out: Folded) -> None:
        words, names = self._words, self._names
        at, sent_at, ended_at = record.arrived_at, record.dispatched_at, record.ended_at
        step = step_row(record, words, names)
        out.rows["steps"].append(step)
        if ended_at is None:
            ended_at = at
        tenant = words[record.tenant]
        row = out.program(names[record.program], tenant, ended_at)
        if at < row["opened_at"]:
            row["opened_at"] = at
        if record.parent:
            row["parent"] = names[record.parent]
        for field in _OF_PROGRAM:
            said = words[getattr(record, field)]
            if said:
                row[field] = said
        row["steps" if record.outcome == "finished" else "failed_steps"] += 1
        row["queue_s"] += record.queue_s
        for attempt in record.tries:
            row["engine_s"] += attempt.ended_at - attempt.sent_at
        if sent_at is not None and not (record.tries and record.tries[-1].sent_at == sent_at):
            row["engine_s"] += max(ended_at - sent_at, 0.0)
        sums = out.tenant(tenant, ended_at)
        sums["steps"] += 1
        for field, place in _COUNTS:
            count = step[place]
            if count:
                row[field] += count
                sums[field] += count
        if record.workflow is not None:
            out.workflow(tenant, words[record.workflow], ended_at)["steps"] += 1

    # -- facts that others tell

    def _said(self, record: Record, out: Folded) -> None:
        kind, row = record
        if kind in PRIVATE and not self._keep_prompts:
            return
        if kind == "forecast":
            key = row["name"]
            out.keyed["forecasts"][key] = {"name": key, "body": bytes(row["body"]), "at": row["at"]}
        elif kind == "account":
            key = clean(row["tenant"])
            out.keyed["accounts"][key] = {"tenant": key, "service": row["service"], "at": row["at"]}
        elif kind == "chain":
            program = self._names[row["program"]]
            out.keyed["chains"][program] = {"program": program, "body": bytes(row["body"]), "at": row["at"]}
        elif kind == "graph":
            graph = (clean(row["tenant"]), clean(row["name"]), row["graph"])
            out.keyed["graphs"][graph] = {
                "tenant": graph[0], "name": graph[1], "kind": graph[2], "body": bytes(row["body"]), "at": row["at"],
            }  # fmt: skip
        elif kind == "engine":
            self._engine_told(row, out)
        elif kind == "prompt":
            self._prompt(row, out)
        else:
            self._note(kind, row, out)

    def _engine_told(self, row: Mapping[str, Any], out: Folded) -> None:
        engine = out.engine(row["id"])
        for field, said in row.items():
            if field in engine and said is not None:
                engine[field] = json_text(said) if field == "models" else said

    def _prompt(self, row: Mapping[str, Any], out: Folded) -> None:
        text = row["text"] if self._redact is None else self._redact(row["text"])
        whole = text.replace("\0", "").encode("utf-8", "replace")
        kept = whole[: self._prompt_bytes_max]
        out.keyed["prompts"][row["step"]] = {
            "step": row["step"],
            "program": self._names[row["program"]],
            "at": row["at"],
            "text": kept.decode("utf-8", "ignore"),
            "cut_bytes": len(whole) - len(kept),
        }

    def _note(self, kind: str, row: Mapping[str, Any], out: Folded) -> None:
        key = (kind[:50], name(str(row.get("id", row.get("key", "")))))
        out.keyed["notes"][key] = {
            "kind": key[0],
            "key": key[1],
            "tenant": clean(row.get("tenant")),
            "at": float(row.get("at") or 0.0),
            "body": _encode_body(dict(row)),
        }


def _encoded(told: list[Told], out: Folded) -> tuple[int, bytes]:
    """The journal's piece and how many events are in it."""
    try:
        return len(told), _encode_events(told)
    except (TypeError, ValueError, OverflowError, RecursionError):
        kept = []
        for item in told:
            try:
                _encode_events(item)
                kept.append(item)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                out.left_out("event", error)
        return len(kept), _encode_events(kept)


_COUNTS = tuple(
    (field, COLUMNS["steps"].index(field)) for field in ("prompt_tokens", "cached_tokens", "output_tokens")
)
_OF_PROGRAM = ("workflow", "session", "model", "identity_source")
_ROWS: dict[type, Callable[[Fold, Any, Folded], None]] = {
    StepRecord: Fold._step,
    Record: Fold._said,
    facts.ProgramOpened: Fold._opened,
    facts.ProgramClosed: Fold._closed,
    facts.ToolCallOver: Fold._tool,
    facts.PinMade: Fold._pin_made,
    facts.PinOver: Fold._pin_over,
    facts.PinPaid: Fold._pin_paid,
    facts.WarmOver: Fold._warm,
}


def kind_of(record: Kept) -> str:
    """What a record is counted as."""
    if isinstance(record, Record):
        return record.kind
    return "step" if isinstance(record, StepRecord) else "fact"
