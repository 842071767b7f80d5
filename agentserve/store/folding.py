"""From events, steps and facts to the rows of one batch.

Rule: pure work on what was queued, done by the writer's thread; it knows no database. Sums of a program are added up
here, so that a batch touches each program once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core import facts
from agentserve.core.story import PROGRAM_IDLE_S, Story

STEPS_REMEMBERED_MAX = 50_000  # those that are open, and the latest that failed
TEXT_CHARS_MAX = 2_000
ID_CHARS_MAX = 1_000  # PostgreSQL cannot index much more
COUNT_MAX = 2**40  # leaves room for sums
# Kinds of facts that hold what users wrote: kept only where the operator wants prompts kept.
PRIVATE = frozenset({"prompt", "response", "conversation"})

_encode_events = msgspec.msgpack.Encoder().encode
_encode_body = msgspec.msgpack.Encoder().encode

Values = dict[str, Any]


class Told(NamedTuple):
    """An event as the scheduler was told it."""

    event: ev.AnyEvent
    now: float
    decisions: list[do.AnyDecision]


class Record(NamedTuple):
    """A finished step, or a fact."""

    kind: str
    row: Mapping[str, Any]


class Folded:
    """The rows of a batch, by table, and the piece of the journal."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Values]] = defaultdict(list)
        self.keyed: dict[str, dict[Any, Values]] = defaultdict(dict)
        self.journal = b""
        self.events = 0
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.malformed: Counter[str] = Counter()  # by kind
        self.complaint = ""  # about the first of them

    def left_out(self, kind: str, error: Exception) -> None:
        """Something could not be folded."""
        self.malformed[kind] += 1
        self.complaint = self.complaint or f"{kind}: {error!r}"

    def count(self) -> int:
        """Rows to write, the journal's piece aside."""
        return sum(map(len, self.rows.values())) + sum(map(len, self.keyed.values()))

    def tables(self) -> Iterable[tuple[str, list[Values]]]:
        """Every table's rows; keyed ones in the order of their keys, so that two writers never deadlock."""
        for table, keyed in self.keyed.items():
            yield table, [keyed[key] for key in sorted(keyed)]
        yield from self.rows.items()


class Fold:
    """Keeps what spans batches: the story, and which program a step is of."""

    def __init__(
        self,
        *,
        clock_offset_s: float = 0.0,
        keep_prompts: bool = False,
        prompt_bytes_max: int = 64 * 1024,
        redact: Callable[[str], str] | None = None,
        program_idle_s: float = PROGRAM_IDLE_S,
    ) -> None:
        self._offset_s = clock_offset_s
        self._keep_prompts = keep_prompts
        self._prompt_bytes_max = prompt_bytes_max
        self._redact = redact
        self._story = Story(program_idle_s=program_idle_s)
        self._program_of: OrderedDict[str, str] = OrderedDict()

    def fold(self, told: list[Told], records: list[Record]) -> Folded:
        """One batch. What makes no sense is left out and counted: it must not cost what does."""
        out = Folded()
        for item in told:
            try:
                self._event(item, out)
            except Exception as error:
                out.left_out("event", error)
        if told:
            out.first_at = told[0].now + self._offset_s
            out.last_at = told[-1].now + self._offset_s
            known = [item for item in told if isinstance(item.event, ev.Event)]
            out.events, out.journal = _encoded(known, out)
        for record in records:
            try:
                if record.kind == "step":
                    self._step(record.row, out)
                else:
                    self._fact(record.kind, record.row, out)
            except Exception as error:
                out.left_out(record.kind, error)
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
        known = self._story.tell(event, now, decisions)
        if kind is ev.TimerFired:
            known = [*known, *self._story.expire(now)]
        for fact in known:
            handler = _FACTS.get(type(fact))
            if handler is not None:
                handler(self, fact, out)
        for decision in decisions:
            out.rows["decisions"].append(self._decision(decision, now))
        if kind is ev.StepFinished or kind is ev.ClientGone:
            assert isinstance(event, (ev.StepFinished, ev.ClientGone))
            self._program_of.pop(event.step, None)  # nothing is decided about it any more

    def _decision(self, decision: do.AnyDecision, now: float) -> Values:
        row = {
            "at": now + self._offset_s,
            "program": None,
            "step": None,
            "kind": type(decision).__name__,
            "cause": decision.cause,
            "reason": decision.reason,
            "detail": clean(decision.detail),
            "engine": None,
            "tokens": None,
            "until": None,
        }
        if isinstance(decision, (do.Dispatch, do.Wait, do.Reject, do.Abort)):
            row["step"] = decision.step
            row["program"] = name(self._program_of.get(decision.step))
            if isinstance(decision, do.Dispatch):
                row["tokens"] = decision.expected_cached_tokens
        else:
            row["program"] = name(decision.program)
            if not isinstance(decision, do.Unpin):
                until = decision.until if isinstance(decision, do.Pin) else decision.due
                row["tokens"], row["until"] = decision.tokens, until + self._offset_s
        if not isinstance(decision, (do.Wait, do.Reject)):
            row["engine"] = decision.engine
        return row

    def _engine(self, event: ev.AnyEvent, now: float, out: Folded) -> None:
        assert isinstance(event, (ev.EngineReported, ev.EngineLost, ev.EngineBack))
        row = out.keyed["engines"].setdefault(event.engine, _empty_engine(event.engine))
        row["seen_at"] = now + self._offset_s
        if isinstance(event, ev.EngineReported):
            for field in ("kv_tokens", "running", "waiting", "kv_used_share"):
                value = getattr(event, field)
                if value is not None:
                    row[field] = value
            if event.models:
                row["models"] = [clean(model) for model in event.models]
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
        row = self._program(fact.program, fact.tenant, at, out)
        row["state"], row["ended_at"], row["end_reason"] = "live", None, None
        row["parent"] = row["parent"] or name(fact.parent)
        tenant = self._tenant(fact.tenant, at, out)
        tenant["programs"] += 1

    def _closed(self, fact: facts.ProgramClosed, out: Folded) -> None:
        at = fact.at + self._offset_s
        row = self._program(fact.program, fact.tenant, at, out)
        row["opened_at"] = min(row["opened_at"], fact.opened_at + self._offset_s)
        row["state"] = "ended"
        row["ended_at"], row["end_reason"] = at, clean(fact.reason)
        row["workflow"] = row["workflow"] or clean(fact.workflow)
        for field in ("seconds", "human_s", "tool_s", "slowdown"):
            row[field] = getattr(fact, field)
        if fact.workflow is not None:
            self._workflow(fact.tenant, fact.workflow, at, out)["programs"] += 1

    def _tool(self, fact: facts.ToolCallOver, out: Folded) -> None:
        out.rows["tool_calls"].append(
            {
                "program": name(fact.program),
                "tenant": clean(fact.tenant),
                "step": fact.step,
                "call": clean(fact.id),
                "name": clean(fact.name),
                "kind": fact.kind,
                "argument_class": clean(fact.argument_class),
                "exact_hash": f"{fact.exact_hash & _U64:016x}" if fact.exact_hash is not None else None,
                "pipes": fact.pipes,
                "chain": fact.chain,
                "timeout_s": fact.timeout_s,
                "background": fact.background,
                "started_at": fact.started_at + self._offset_s,
                "seconds": fact.seconds,
                "measured": fact.measured,
                "censored": fact.censored,
                "ok": fact.ok,
                "beside": fact.beside,
            }
        )

    def _pin_made(self, fact: facts.PinMade, out: Folded) -> None:
        row = self._pin(fact, fact.at, out)
        row["outcome"] = "open"
        row["until"] = fact.until + self._offset_s if fact.until is not None else None

    def _pin_over(self, fact: facts.PinOver, out: Folded) -> None:
        row = self._pin(fact, fact.made_at, out)
        row["outcome"] = fact.end
        row["ended_at"] = fact.at + self._offset_s
        row["held_s"], row["saved_s"] = fact.held_s, fact.saved_s

    def _pin(self, fact: facts.PinMade | facts.PinOver, made_at: float, out: Folded) -> Values:
        at = made_at + self._offset_s
        program = name(fact.program)
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
        program, at = name(fact.program), fact.made_at + self._offset_s
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

    def _step(self, given: Mapping[str, Any], out: Folded) -> None:
        at, ended_at = given["arrived_at"], given["ended_at"]
        sent_at = given["dispatched_at"]
        queue_s = max(sent_at - at - given["overhead_s"], 0.0) if sent_at is not None else 0.0
        tenant, error, tools = clean(given["tenant"]), given["error"], given["tools"]
        counts = [bounded(given[field]) for field in _COUNTS]
        out.keyed["steps"][given["step"]] = {
            "id": given["step"],
            "program": name(given["program"]),
            "tenant": tenant,
            "number": given["index"],
            "protocol": given["protocol"],
            "model": clean(given["model"]),
            "engine": given["engine"],
            "status": given["status"],
            "outcome": given["outcome"],
            "error": clean(error) if error else "",
            "arrived_at": at,
            "dispatched_at": sent_at,
            "first_byte_at": given["first_byte_at"],
            "ended_at": ended_at,
            "queue_s": queue_s,
            "overhead_s": given["overhead_s"],
            "node": clean(given["node"]),
            "role": f"{given['role'] & _U64:016x}",
            "relation": given["relation"],
            "identity_source": given["identity_source"],
            "identity_confidence": given["identity_confidence"],
            "streamed": given["streamed"],
            "prompt_tokens": counts[0],
            "cached_tokens": counts[1],
            "output_tokens": counts[2],
            "expected_cached_tokens": given["expected_cached_tokens"],
            "finish_reason": clean(given["finish_reason"]),
            "tools": [clean(tool) for tool in tools] if tools else [],
            "reason": given["reason"],
            "detail": clean(given["detail"]),
            "gap_s": given["gap_s"],
            "trace_id": given.get("trace_id"),
        }
        ended_at = ended_at if ended_at is not None else at
        row = self._program(given["program"], tenant, ended_at, out)
        if at < row["opened_at"]:
            row["opened_at"] = at
        for field in _OF_PROGRAM:
            said = given[field]
            if said is not None:
                row[field] = (name if field == "parent" else clean)(said) or row[field]
        row["steps" if given["outcome"] == "finished" else "failed_steps"] += 1
        row["queue_s"] += queue_s
        if sent_at is not None and ended_at > sent_at:
            row["engine_s"] += ended_at - sent_at
        sums = self._tenant(tenant, ended_at, out)
        sums["steps"] += 1
        for field, count in zip(_COUNTS, counts, strict=True):
            if count:
                row[field] += count
                sums[field] += count
        if given["workflow"] is not None:
            self._workflow(tenant, given["workflow"], ended_at, out)["steps"] += 1

    def _program(self, program: str, tenant: str, at: float, out: Folded) -> Values:
        key = name(program)
        assert key is not None
        row = out.keyed["programs"].get(key)
        if row is None:
            row = out.keyed["programs"][key] = {
                **_NEW_PROGRAM, "id": key, "tenant": clean(tenant), "opened_at": at, "last_at": at,
            }  # fmt: skip
        if at < row["opened_at"]:
            row["opened_at"] = at
        if at > row["last_at"]:
            row["last_at"] = at
        return row

    def _tenant(self, tenant: str, at: float, out: Folded) -> Values:
        key = clean(tenant)
        row = out.keyed["tenants"].get(key)
        if row is None:
            row = out.keyed["tenants"][key] = {**_NEW_TENANT, "id": key, "first_seen_at": at}
        row["last_seen_at"] = at
        return row

    def _workflow(self, tenant: str, workflow: str, at: float, out: Folded) -> Values:
        key = (clean(tenant), clean(workflow))
        row = out.keyed["workflows"].get(key)
        if row is None:
            row = out.keyed["workflows"][key] = {
                "tenant": key[0], "name": key[1], "first_seen_at": at, "programs": 0, "steps": 0,
            }  # fmt: skip
        row["last_seen_at"] = at
        return row

    # -- facts that others tell

    def _fact(self, kind: str, row: Mapping[str, Any], out: Folded) -> None:
        if kind in PRIVATE and not self._keep_prompts:
            return
        if kind == "forecast":
            key = row["name"]
            out.keyed["forecasts"][key] = {"name": key, "body": bytes(row["body"]), "at": row["at"]}
        elif kind == "account":
            key = clean(row["tenant"])
            out.keyed["accounts"][key] = {"tenant": key, "service": row["service"], "at": row["at"]}
        elif kind == "chain":
            program = name(row["program"])
            out.keyed["chains"][program] = {"program": program, "body": bytes(row["body"]), "at": row["at"]}
        elif kind == "graph":
            graph = (clean(row["tenant"]), clean(row["name"]), row["graph"])
            out.keyed["graphs"][graph] = {
                "tenant": graph[0], "name": graph[1], "kind": graph[2], "body": bytes(row["body"]), "at": row["at"],
            }  # fmt: skip
        elif kind == "engine":
            engine = out.keyed["engines"].setdefault(row["id"], _empty_engine(row["id"]))
            engine.update({k: v for k, v in row.items() if k in engine and v is not None})
        elif kind == "prompt":
            self._prompt(row, out)
        else:
            self._note(kind, row, out)

    def _prompt(self, row: Mapping[str, Any], out: Folded) -> None:
        text = row["text"] if self._redact is None else self._redact(row["text"])
        whole = text.replace("\0", "").encode("utf-8", "replace")
        kept = whole[: self._prompt_bytes_max]
        out.keyed["prompts"][row["step"]] = {
            "step": row["step"],
            "program": name(row["program"]),
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


_U64 = 0xFFFF_FFFF_FFFF_FFFF
_COUNTS = ("prompt_tokens", "cached_tokens", "output_tokens")
_OF_PROGRAM = ("parent", "workflow", "session", "model", "identity_source")
_NEW_PROGRAM: Values = {
    "state": "", "ended_at": None, "end_reason": None, "parent": None, "workflow": None, "session": None,
    "model": None, "identity_source": None, "steps": 0, "failed_steps": 0, "prompt_tokens": 0,
    "cached_tokens": 0, "output_tokens": 0, "engine_s": 0.0, "queue_s": 0.0, "seconds": None, "human_s": None,
    "tool_s": None, "slowdown": None,
}  # fmt: skip
_NEW_TENANT: Values = {
    "programs": 0, "steps": 0, "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0,
}  # fmt: skip
_FACTS: dict[type, Callable[[Fold, Any, Folded], None]] = {
    facts.ProgramOpened: Fold._opened,
    facts.ProgramClosed: Fold._closed,
    facts.ToolCallOver: Fold._tool,
    facts.PinMade: Fold._pin_made,
    facts.PinOver: Fold._pin_over,
    facts.WarmOver: Fold._warm,
}


def _empty_engine(engine: str) -> Values:
    return {
        "id": engine, "state": "", "kind": None, "url": None, "models": None, "kv_tokens": None, "running": None,
        "waiting": None, "kv_used_share": None, "seen_at": 0.0, "reason": None,
    }  # fmt: skip


def clean(text: Any) -> Any:
    """Text that every database takes: no NUL, no lone surrogate, bounded."""
    if not text:
        return text
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX]


def name(given: str | None) -> str | None:
    """A program's id, or where it is absurdly long its head and a hash of the whole."""
    if given is None:
        return None
    text: str = clean(given)
    if len(text) <= ID_CHARS_MAX:  # nearly always
        return text
    digest = blake2b(given.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return f"{text[: ID_CHARS_MAX - 33]}#{digest}"


def bounded(count: int | None) -> int | None:
    """A count that fits a column, whatever an engine claimed."""
    return count if count is None or 0 <= count <= COUNT_MAX else max(min(count, COUNT_MAX), 0)
