"""The figures of what every step brings: its record, what the story says of it, what was decided.

Rule: on a step's path only a note is taken. The notes are counted some at a time, or when somebody asks: what is the
same for many is then looked up once, and added up at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from agentserve.core.decisions import AnyDecision, Decision
from agentserve.core.facts import StepOver
from agentserve.ports import StepRecord
from agentserve.telemetry.meters import Meters, Number, Spread

NOTED_MAX = 200  # about 70 steps; counted together they take a tenth of a millisecond
BOUND_MAX = 10_000  # bundles of children kept

Note = StepRecord | StepOver | AnyDecision


class Bound:
    """The children that the steps of one tenant, workflow, engine and outcome touch."""

    __slots__ = ("cached", "output", "prompt", "queue", "step_s", "steps", "ttft")

    def __init__(self, meters: Meters, tenant: str, workflow: str, engine: str, outcome: str) -> None:
        self.steps: Number = meters.child("steps", tenant, workflow, outcome)
        self.queue: Spread = meters.child("queue_seconds", tenant)
        self.ttft: Spread = meters.child("ttft_seconds", tenant, workflow)
        self.step_s: Spread = meters.child("step_seconds", workflow)
        self.prompt: Number = meters.child("prompt_tokens", tenant, engine)
        self.cached: Number = meters.child("cached_tokens", tenant, engine)
        self.output: Number = meters.child("output_tokens", tenant, engine)


class Tally:
    """Counts steps and decisions."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._noted: list[Note] = []
        self._bound: dict[tuple[str, str | None, str | None, str], Bound] = {}
        self._overhead: Spread = meters.child("overhead_seconds")
        meters.before_showing(self.count)

    def note(self, noted: Note) -> None:
        """It is not changed any more."""
        self._noted.append(noted)
        if len(self._noted) >= NOTED_MAX:
            self.count()

    def count(self) -> None:
        """Count what was noted."""
        noted, self._noted = self._noted, []
        by_kind: defaultdict[type, list[Any]] = defaultdict(list)
        for note in noted:
            by_kind[type(note)].append(note)
        self._ended(by_kind.pop(StepRecord, ()))
        self._told(by_kind.pop(StepOver, ()))
        for kind, decisions in by_kind.items():
            if not issubclass(kind, Decision):
                self._meters.child("telemetry_errors", "watch").value += len(decisions)
                continue
            for reason, count in Counter([decision.reason for decision in decisions]).items():
                self._meters.child("decisions", kind.__name__, reason).value += count

    def _told(self, steps: Iterable[StepOver]) -> None:
        refilled: Counter[tuple[str, str]] = Counter()
        saved_s: defaultdict[str, float] = defaultdict(float)
        for step in steps:
            if step.refilled_tokens:
                refilled[step.tenant, step.engine] += step.refilled_tokens
            if step.saved_s:
                saved_s[step.engine] += step.saved_s
        for where, tokens in refilled.items():
            self._meters.child("refilled_tokens", *where).value += tokens
        for engine, seconds in saved_s.items():
            self._meters.child("saved_prefill_seconds", engine).value += seconds

    def _ended(self, steps: Sequence[StepRecord]) -> None:
        for who, count in Counter([(r.identity_source, r.relation) for r in steps]).items():
            self._meters.child("steps_identified", *who).value += count
        alike: defaultdict[tuple[str, str | None, str | None, str], list[StepRecord]] = defaultdict(list)
        for record in steps:
            alike[record.tenant, record.workflow, record.engine, record.outcome].append(record)
        for key, records in alike.items():
            bound = self._children(*key)
            bound.steps.value += len(records)
            self._times(bound, records)
            if key[3] == "finished":
                whole = [r.ended_at - r.arrived_at for r in records if r.ended_at is not None]
                bound.step_s.observe_all(whole)
            # of failed ones too: a stream that ends in the engine's own error was computed, and its row says so
            bound.prompt.value += sum([r.prompt_tokens for r in records])
            bound.output.value += sum([r.output_tokens for r in records])
            bound.cached.value += sum([r.cached_tokens or 0 for r in records])

    def _times(self, bound: Bound, records: list[StepRecord]) -> None:
        # who waited in vain waited too
        bound.queue.observe_all([r.queue_s for r in records if r.dispatched_at is not None or r.queue_s])
        bound.ttft.observe_all(
            [r.first_byte_at - r.arrived_at for r in records if r.first_byte_at is not None]
        )
        self._overhead.observe_all([r.overhead_s for r in records if r.dispatched_at is not None])
        for record in [r for r in records if r.trace_id is not None]:
            _show(bound, record)

    def _children(self, tenant: str, workflow: str | None, engine: str | None, outcome: str) -> Bound:
        key = (tenant, workflow, engine, outcome)
        bound = self._bound.get(key)
        if bound is None:
            bound = Bound(self._meters, tenant, workflow or "", engine or "", outcome)
            if len(self._bound) < BOUND_MAX:
                self._bound[key] = bound
        return bound


def _show(bound: Bound, record: StepRecord) -> None:
    """Let the buckets that the step falls into show its trace."""
    arrived_at, sent_at, first_at, trace_id = (
        record.arrived_at, record.dispatched_at, record.first_byte_at, record.trace_id,
    )  # fmt: skip
    assert trace_id is not None
    if sent_at is not None:
        bound.queue.show(record.queue_s, trace_id, sent_at)
    if first_at is not None:
        bound.ttft.show(first_at - arrived_at, trace_id, first_at)
    if record.ended_at is not None and record.outcome == "finished":
        bound.step_s.show(record.ended_at - arrived_at, trace_id, record.ended_at)
