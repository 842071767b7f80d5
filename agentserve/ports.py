"""The seams between the middleware and what can be swapped: engine adapters, the journal, telemetry.

Rule: a port is a Protocol and plain values; it imports only the core's vocabulary. Adapters live in
distributions of their own and are found by the entry point group `agentserve.adapters`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from agentserve.core.decisions import AnyDecision, PinMode
from agentserve.core.events import AnyEvent

Json = dict[str, Any]


RUNNING = "running/"  # how names in the archive begin of what says that something runs, and nothing else


class Archive(Protocol):
    """Where stored responses and conversations are at rest, by tenant and id."""

    def keep(self, tenant: str, record: str, body: bytes) -> None:
        """Keep it, behind the request's back."""
        ...

    def forget(self, tenant: str, record: str) -> None:
        """Delete it."""
        ...

    async def load(self, tenant: str, record: str) -> bytes | None:
        """What was kept; None when it is not there."""
        ...


class ToolTime(msgspec.Struct, frozen=True, kw_only=True):
    """What all calls of one tool took."""

    name: str
    seconds: float


class ProgramSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A program and its sub-agents' programs in a few sums."""

    over: bool
    agents: int  # sub-agents' programs
    steps: int
    tool_s: float  # that it waited for tools, those beside one another once
    tools: tuple[ToolTime, ...]  # those that took the most time first
    queue_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    pins_used: int
    saved_s: float  # of prefill, by pins that were used


class Summaries(Protocol):
    """What is known of programs that may be over."""

    async def summary(self, program: str) -> ProgramSummary | None:
        """The program's, by its key `tenant/name`; None where nothing is kept of it."""
        ...


class Outcome(StrEnum):
    """What became of a native action. Low cardinality: it labels metrics."""

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An engine's answer to a pin, unpin, warm or abort."""

    outcome: Outcome
    mode: PinMode | Literal["none"] = "none"
    detail: str = ""
    prompt_tokens: int | None = None  # of what a warm sent
    cached_tokens: int | None = None  # of these, what was there


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one engine can do, found out by asking it, not assumed from its kind."""

    kind: str
    version: str = ""
    models: tuple[str, ...] = ()
    protocols: frozenset[str] = frozenset({"chat", "completions"})
    kv_tokens: int | None = None
    block_tokens: int | None = None
    seqs_max: int | None = None
    context_tokens_max: int | None = None
    priority: bool = False
    pin: PinMode = "reserved"
    kv_events: bool = False
    reports_cached_tokens: bool = False
    tokenises: bool = False
    # flag text an operator could add, and what it would unlock
    unlocks: tuple[tuple[str, str], ...] = ()
    refused: tuple[str, ...] = ()
    # what agentserve can do with it, and how: ("pin", "reserved: admission at the proxy"), …
    mechanisms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """One reading of an engine's own gauges; None where it does not say."""

    running: int | None = None
    waiting: int | None = None
    kv_used_share: float | None = None
    preemptions: int | None = None
    prefix_queries_tokens: int | None = None
    prefix_hits_tokens: int | None = None
    # names this run of the engine: when it changes, the engine was restarted and its KV is gone
    boot: str = ""


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler would have the engine know about a step."""

    program: str
    tenant: str
    step: str
    priority: int = 0  # smaller goes sooner; the adapter turns the polarity
    cache_salt: str | None = None
    expected_output_tokens: int | None = None
    program_final: bool = False
    traceparent: str | None = None


class Outgoing(msgspec.Struct, kw_only=True):
    """A request on its way to an engine. An adapter may change `body` and `headers`, nothing else does.

    `changed` says whether the body must be serialised anew; if not, the client's own bytes travel on. The `messages`
    of a long body may have come unread, as a `msgspec.Raw`: who looks into them asks `opened`.
    """

    protocol: str
    path: str
    body: Json
    headers: MutableMapping[str, str] = msgspec.field(default_factory=dict)
    changed: bool = False


def opened(value: Any) -> Any:
    """A part of a body, read if it was not."""
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPrefix:
    """Enough to render a program's prompt again: the last request it sent, which is how its next one begins.

    Held in memory only, bounded, for warming; absent when the operator forbids keeping prompts in memory.
    """

    protocol: str
    body: Json


Asgi = Callable[
    [Json, Callable[[], Awaitable[Json]], Callable[[Json], Awaitable[None]]],
    Awaitable[None],
]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvChange:
    """One KV event of an engine, encoding and hash type already levelled; "cleared" carries no hashes."""

    kind: Literal["stored", "removed", "cleared"]
    hashes: tuple[int, ...] = ()
    parent: int | None = None
    token_ids: tuple[int, ...] = ()
    block_tokens: int = 0
    medium: str = "GPU"
    session: str | None = None  # the program that the engine stored it for, where the engine says so


@dataclass(frozen=True, slots=True, kw_only=True)
class KvHolding:
    """How much of a program's prefix an engine holds now, of how much it ever stored for it."""

    program: str
    tokens: int
    tokens_known: int


@runtime_checkable
class ReportsHoldings(Protocol):
    """An adapter whose engine says whose blocks it stores, so that its KV events fold into programs.

    Only programs whose holding changed are yielded; after a restart every program that was known comes
    with 0 tokens.
    """

    def kv_holdings(self) -> AsyncIterator[KvHolding]: ...


@runtime_checkable
class EngineAdapter(Protocol):
    """One engine, seen through what it natively speaks. Built by `adapter_class(options: EngineOptions)`.

    `prepare` is on every request's path: it must not wait and must not copy the body.
    Everything else may wait, must be cancellable, and answers a refusal with a `Receipt`, never by raising;
    it raises `EngineError` only when the engine cannot be reached.
    """

    kind: str
    url: str

    @property
    def app(self) -> Asgi | None:
        """The engine as an ASGI application in this process, or None when it is reached at `url`."""
        ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def probe(self) -> Capabilities: ...
    async def load(self) -> EngineLoad: ...
    def prepare(self, outgoing: Outgoing, hints: Hints) -> None: ...
    async def count_tokens(self, protocol: str, body: Json) -> int | None: ...
    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt: ...
    async def unpin(self, program: str) -> Receipt: ...
    async def warm(self, program: str, prefix: ProgramPrefix) -> Receipt: ...
    async def abort(self, request_id: str) -> Receipt: ...
    def kv_events(self) -> AsyncIterator[KvChange]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an adapter is built from: one `[[engines]]` entry of the settings."""

    id: str
    kind: str
    url: str = ""
    models: tuple[str, ...] = ()
    api_key: str | None = None
    kv_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Journal(Protocol):
    """Where what happened is written, behind the requests. No call waits or raises."""

    def event(self, event: AnyEvent, now: float, decisions: list[AnyDecision]) -> None:
        """The scheduler was told `event` at `now` (seconds, epoch) and decided this."""
        ...

    def step(self, record: StepRecord) -> None:
        """A step ended; nobody changes its record any more."""
        ...

    def fact(self, kind: str, row: Mapping[str, Any]) -> None:
        """Anything else that is kept: forecasts, accounts, chains, graphs, engines, notes by kind and id."""
        ...


class Telemetry(Protocol):
    """Counters, histograms and spans. No call waits or raises; none costs anything when switched off."""

    def count(self, name: str, value: float = 1.0, /, **labels: str) -> None: ...
    def observe(self, name: str, value: float, /, *, trace_id: str | None = None, **labels: str) -> None: ...
    def gauge(self, name: str, value: float, /, **labels: str) -> None: ...
    def step_done(self, record: StepRecord) -> None: ...


class Try(NamedTuple):
    """One time that a step was with an engine which did not begin to reply."""

    engine: str
    sent_at: float
    ended_at: float


class StepRecord(msgspec.Struct, kw_only=True):
    """Everything that is known of one step once it is over.

    The journal's row, the metrics and the span are all made from it. Times are epoch seconds; None where
    the step never got that far.
    """

    step: str
    program: str
    tenant: str
    protocol: str
    model: str
    arrived_at: float
    dispatched_at: float | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None
    engine: str | None = None
    status: int = 0
    outcome: str = ""  # finished | failed | gone | rejected
    error: str = ""
    index: int = 0
    parent: str | None = None
    workflow: str | None = None
    session: str | None = None
    node: str | None = None
    role: int = 0
    identity_source: str = ""
    identity_confidence: float = 0.0
    relation: str = ""
    streamed: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    expected_cached_tokens: int = 0
    finish_reason: str = ""
    tools: tuple[str, ...] = ()
    reason: str = ""  # why the scheduler sent it there and then
    detail: str = ""
    queue_s: float = 0.0  # waited for room, also in vain or again after an engine failed
    overhead_s: float = (
        0.0  # our own time before it was sent, or in all where no reply began: no wait, no engine's
    )
    tries: tuple[Try, ...] = ()  # that came to nothing; the last that was sent is `dispatched_at`
    traceparent: str | None = None
    gap_s: float | None = None  # since the program's previous step ended
    decisions: tuple[AnyDecision, ...] = ()
    trace_id: str | None = None  # of the program's trace where it is sampled; telemetry fills it in
