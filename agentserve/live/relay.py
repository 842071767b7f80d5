"""The hot path: a client's step, through the scheduler, to an engine, and the reply back.

Rule: bytes of the reply pass unchanged, and whatever is read from them is read beside. Before the first byte a step
may go elsewhere once; after it, never. Every wait ends by itself, by a deadline or by the client leaving. What the
scheduler was told begins with `StepArrived` and ends with exactly one of finished, failed or gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from agentserve.config import Settings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.identity import Resolved, Resolver, scoped
from agentserve.core.ids import StepId, TenantId, WorkflowId
from agentserve.errors import (
    AgentServeError,
    BadRequest,
    EngineBroke,
    EngineError,
    EngineUnreachable,
    NotFound,
    Overloaded,
)
from agentserve.live import shapes
from agentserve.live.auth import CALL, Keys, authorise
from agentserve.live.driver import Driver, Ticket
from agentserve.live.engines import Engine, Engines
from agentserve.live.exchange import LEFT_EXTENSION, Exchange, Receive, Scope, Send, StreamCut
from agentserve.live.headers import content_length, forwarded, returned
from agentserve.live.monitor import Monitor
from agentserve.live.outcome import Ledger
from agentserve.live.quotas import Quotas
from agentserve.live.responses import Responses
from agentserve.live.splice import ask_for_usage, wants_asking
from agentserve.live.taps import Taps
from agentserve.live.translate import Translation, translation
from agentserve.live.upstream import Deadlines, UpstreamReply
from agentserve.live.wire import Call, CallReader, ReplyReader
from agentserve.ports import Hints, Outgoing

log = logging.getLogger("agentserve.relay")

ATTEMPTS_MAX = 2
ELSEWHERE_WAIT_S = 10.0  # how long a step whose engine failed waits for another one
NO_ENGINE_RETRY_S = 5.0
BUSY_STATUSES = frozenset({502, 503, 504})
REJECTED = {
    "queue_timeout": "no place came free in time",
    "overloaded": "too many steps wait",
    "draining": "this gateway is shutting down",
    "no_engine": "no engine can take this step",
}
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


class Relay:
    """Serves the inference endpoints."""

    def __init__(
        self,
        *,
        settings: Settings,
        driver: Driver,
        resolver: Resolver,
        engines: Engines,
        monitor: Monitor,
        ledger: Ledger,
        keys: Keys,
        quotas: Quotas,
        responses: Responses,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._driver = driver
        self._resolver = resolver
        self._engines = engines
        self._monitor = monitor
        self._ledger = ledger
        self._keys = keys
        self._quotas = quotas
        self._responses = responses
        self._clock = clock
        self._reader = CallReader()
        self._show_headers = settings.gateway.response_headers
        self._steps = 0
        self._boot = f"{int(clock() * 1000):x}"
        self.open: set[Exchange] = set()  # under way
        self.draining = False
        limits = settings.limits
        self._deadlines = Deadlines(
            connect_s=limits.connect_timeout_s,
            first_byte_s=limits.first_byte_timeout_s,
            idle_s=limits.idle_stream_timeout_s,
            overall_s=limits.overall_timeout_s,
        )

    async def serve(self, scope: Scope, receive: Receive, send: Send, *, protocol: str, path: str) -> None:
        """One request; `path` is the engine's, without a program in front."""
        x = Exchange(scope, receive, send, protocol=protocol, path=path)
        x.started_clock = time.perf_counter()
        x.arrived_at = self._clock()
        self.open.add(x)
        try:
            await self._serve(x)
        except asyncio.CancelledError:
            if not x.left:
                raise
            _uncancel()
        except StreamCut:
            raise
        except AgentServeError as error:
            await self._refuse(x, error)
        except Exception as error:
            log.exception("a request failed")
            await self._refuse(x, error)
        finally:
            x.stop_watching()
            self.open.discard(x)

    def estimate_tokens(self, path: str, body: Mapping[str, Any]) -> int:
        """About how long a prompt is, by what the model's prompts turned out to be."""
        call = self._reader.read(path, {}, body)
        return 0 if call is None else self._ledger.prompt_tokens(call)

    async def _refuse(self, x: Exchange, error: Exception) -> None:
        if x.left or x.ended:
            return
        if x.started:
            raise StreamCut(str(error)) from error
        status = await x.refuse(error, self._own_headers(x))
        self._ledger.refused(x, status, error)

    # -- reading the request

    async def _serve(self, x: Exchange) -> None:
        x.headers = x.header_values()
        now = self._driver.now()
        x.principal = authorise(self._keys, x.headers, CALL, x.arrived_at)
        if self.draining:
            raise Overloaded(
                REJECTED["draining"],
                remedy="send it again, to another gateway",
                retry_after_s=1.0,
                status=503,
            )
        self._quotas.request(x.principal.tenant, now)
        x.raw = await x.read_body(self._limits.body_bytes_max)
        x.body = parse_body(x.raw, x.headers)
        call = x.call = self._reader.read(x.scope["path"], x.headers, x.body)
        if call is None:
            raise NotFound(f"nothing is served at {x.scope['path']}")
        if not self._engines.known_model(call.model):
            raise NotFound(
                f"the model {call.model!r} is not served here", remedy="GET /v1/models lists what is"
            )
        if x.protocol == "responses" and await self._hangs_together(x):
            return
        x.watch_client()
        await self._schedule(x, now)

    async def _hangs_together(self, x: Exchange) -> bool:
        """Responses refer to earlier ones; True when the client does not wait and has its answer already."""
        assert x.principal is not None
        if x.body.get("background") is True:
            body = self._responses.in_background(x, x.principal.tenant, self._run_behind)
            payload = _encode(body)
            await x.start(200, [shapes.JSON_TYPE, (b"content-length", b"%d" % len(payload))])
            await x.write(payload, more=False)
            return True
        thread = x.thread = self._responses.thread(x.principal.tenant, x.body)
        if thread.refers:
            thread.fill(x.body)
            x.raw = _encode(x.body)
        return False

    def _run_behind(
        self, x: Exchange, body: bytes, ended: Callable[[int, bytes], None]
    ) -> asyncio.Task[None]:
        """The same request once more, from nobody: its reply goes to `ended`."""
        status, parts = 500, []
        scope = {**x.scope, "extensions": {LEFT_EXTENSION: lambda callback: None}}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        async def run() -> None:
            try:
                await self.serve(scope, receive, send, protocol=x.protocol, path=x.upstream_path)
            finally:
                ended(status, b"".join(parts))

        return asyncio.get_running_loop().create_task(run())

    # -- the scheduler

    async def _schedule(self, x: Exchange, now: float) -> None:
        call, tenant = x.call, x.principal
        assert call is not None
        assert tenant is not None
        if not self._engines.reachable(call.model):
            raise Overloaded(
                "no engine for this model answers at the moment",
                remedy="try again soon",
                retry_after_s=NO_ENGINE_RETRY_S,
                status=503,
            )
        self._steps += 1
        x.step = f"{self._boot}-{self._steps:x}"
        resolved = x.resolved = self._resolve(x, call, tenant.tenant, now)
        prompt_tokens = self._ledger.prompt_tokens(call)
        if x.thread is not None:
            prompt_tokens += x.thread.tokens
        try:
            self._quotas.step(tenant.tenant, resolved.program_id, prompt_tokens, now)
        except AgentServeError:
            self._resolver.failed(resolved, now)
            raise
        x.tokens_counted = True
        now = self._driver.now()
        ticket = self._driver.submit(self._arrival(x, prompt_tokens))
        x.reasons = ticket.reasons
        told = False
        try:
            decision = ticket.decision.result() if ticket.decision.done() else await ticket.decision
            while True:
                if isinstance(decision, do.Reject):
                    raise rejection(decision)
                x.decision = decision
                x.dispatched_at = self._clock()
                x.queue_s += self._driver.now() - now
                x.attempts += 1
                failure = await self._attempt(x, decision)
                if failure is None:
                    told = True
                    return
                now = self._driver.now()
                decision = await self._elsewhere(x, ticket, failure)
        except BaseException as error:
            if not told:
                self._over(x, ticket, error)
            raise

    def _resolve(self, x: Exchange, call: Call, tenant: str, now: float) -> Resolved:
        """Which program this is of. A failure of ours costs the program its history, never the request."""
        try:
            return self._resolver.resolve(call.evidence, tenant=tenant, now=now)
        except Exception:
            log.exception("a call could not be attributed to a program")
            self._ledger.fell_back("identity")
            return Resolved(
                program_id=scoped(tenant, x.step),
                name=x.step,
                tenant=tenant,
                source="none",
                confidence=0.0,
                relation="new",
            )

    def _arrival(self, x: Exchange, prompt_tokens: int) -> ev.StepArrived:
        call, resolved = x.call, x.resolved
        assert call is not None
        assert resolved is not None
        asked = call.extensions
        return ev.StepArrived(
            step=StepId(x.step),
            program=resolved.program_id,
            tenant=TenantId(resolved.tenant),
            model=call.model,
            prompt_tokens=prompt_tokens,
            output_tokens_max=call.output_tokens_max,
            prefix=self._ledger.segments(call),
            workflow=WorkflowId(asked.workflow) if asked.workflow else None,
            role=resolved.role_fingerprint,
            parent=resolved.parent_id,
            relation=resolved.relation,
            node=asked.node,
            priority=asked.priority,
            deadline_s=asked.deadline_s,
            tools_offered=len(call.tools),
            returned=resolved.returns,
            human=resolved.human,
        )

    async def _elsewhere(self, x: Exchange, ticket: Ticket, failure: EngineError) -> do.Dispatch | do.Reject:
        """The engine failed before the first byte: the next decision, or the failure itself."""
        if x.attempts >= ATTEMPTS_MAX:
            raise failure
        if x.aborted:
            x.aborted = ""  # the scheduler did it, and has put the step back by itself
        else:
            self._driver.tell(ev.StepFailed(step=StepId(x.step), reason=reason_of(failure), retryable=True))
        self._ledger.retried(x, failure)
        try:
            async with asyncio.timeout(ELSEWHERE_WAIT_S):
                decision = await asyncio.shield(ticket.again())
        except TimeoutError:
            raise failure from None
        if isinstance(decision, do.Reject):
            raise failure
        return decision

    def _over(self, x: Exchange, ticket: Ticket, error: BaseException) -> None:
        """The step ended without a whole reply: tell whoever counts on being told."""
        now = self._driver.now()
        assert x.resolved is not None
        self._resolver.failed(x.resolved, now)
        if isinstance(error, asyncio.CancelledError) and x.left:
            self._ledger.gone(x)
            ticket.cancel()
        elif isinstance(error, Overloaded):
            self._ledger.rejected(x, error)
        else:
            self._driver.tell(ev.StepFailed(step=StepId(x.step), reason=reason_of(error), retryable=False))
            self._ledger.failed(
                x, shapes.status_of(error) if isinstance(error, Exception) else 499, str(error)
            )

    # -- the engine

    async def _attempt(self, x: Exchange, decision: do.Dispatch) -> EngineError | None:
        """Send the step and relay its reply. A failure before the first byte is returned, not raised."""
        engine = self._engines.get(decision.engine)
        if engine is None:
            return EngineUnreachable("the engine was removed", engine=decision.engine)
        x.engine = engine.id
        engine.running[x.step] = x
        engine.steps += 1
        try:
            return await self._exchange_with(x, engine, decision)
        except EngineError as error:
            error.engine = error.engine or engine.id
            self._monitor.failed(engine, reason_of(error))
            if (
                x.started
                or x.attempts >= ATTEMPTS_MAX
                or not isinstance(error, (EngineUnreachable, EngineBroke))
            ):
                raise
            return error
        except asyncio.CancelledError:
            if x.left or not x.aborted:
                raise
            _uncancel()
            away = EngineUnreachable(f"the engine went away: {x.aborted}", engine=engine.id)
            if x.started:
                raise away from None
            return away
        finally:
            engine.running.pop(x.step, None)

    async def _exchange_with(self, x: Exchange, engine: Engine, decision: do.Dispatch) -> EngineError | None:
        outgoing, payload, taps = self._prepare(x, engine, decision)
        headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in outgoing.headers.items()
        ]
        reply = await engine.upstream.send("POST", outgoing.path, headers, payload, deadlines=self._deadlines)
        try:
            if reply.status in BUSY_STATUSES and x.attempts < ATTEMPTS_MAX and self._alternatives(x, engine):
                self._monitor.suspect(engine)
                return EngineUnreachable(f"engine {engine.id} answered {reply.status}", engine=engine.id)
            await self._relay(x, engine, reply, taps)
        finally:
            reply.close()
        return None

    def _alternatives(self, x: Exchange, engine: Engine) -> bool:
        assert x.call is not None
        return any(
            other is not engine and other.up and not other.draining and other.serves(x.call.model)
            for other in self._engines
        )

    def _prepare(self, x: Exchange, engine: Engine, decision: do.Dispatch) -> tuple[Outgoing, bytes, Taps]:
        """What the engine gets, and what stands between its reply and the client."""
        fresh = x.attempts == 1  # an adapter has not had its way with the body yet
        body = x.body if fresh else _decode(x.raw)
        taps = Taps()
        outgoing = Outgoing(
            protocol=x.protocol, path=x.upstream_path, body=body, headers=forwarded(x.scope["headers"])
        )
        if not engine.speaks(x.protocol):
            made = self._translate(x, engine, body)
            outgoing.protocol, outgoing.path, outgoing.body, outgoing.changed = (
                "chat",
                made.path,
                made.body,
                True,
            )
            taps.translated = made.tap
        engine.adapter.prepare(outgoing, self._hints(x, decision))
        payload: bytes | None = None if outgoing.changed else x.raw
        if taps.translated is None and wants_asking(x.protocol, outgoing.body):
            payload = ask_for_usage(outgoing.body, payload)
            taps.filters_usage = True
        if x.thread is not None:
            taps.keeps = x.thread.tap
        if payload is None:
            payload = _encode(outgoing.body)
        return outgoing, payload, taps

    def _translate(self, x: Exchange, engine: Engine, body: dict[str, Any]) -> Translation:
        made = translation(x.protocol, body) if engine.speaks("chat") else None
        if made is None:
            raise BadRequest(
                f"engine {engine.id} does not serve {x.upstream_path.partition('?')[0]}",
                remedy="use an endpoint that it serves, or add an engine that serves this one",
            )
        return made

    def _hints(self, x: Exchange, decision: do.Dispatch) -> Hints:
        call, resolved = x.call, x.resolved
        assert call is not None
        assert resolved is not None
        tenant = self._quotas.settings_of(resolved.tenant)
        return Hints(
            program=resolved.program_id,
            tenant=resolved.tenant,
            step=x.step,
            priority=decision.priority,
            cache_salt=tenant.id if tenant.cache_salt else None,
            expected_output_tokens=call.extensions.output_tokens_expected,
            program_final=resolved.final,
            traceparent=self._ledger.traceparent(x),
        )

    async def _relay(self, x: Exchange, engine: Engine, reply: UpstreamReply, taps: Taps) -> None:
        """The reply, piece by piece, to the client and to the reader beside."""
        assert x.call is not None
        streamed = is_stream(reply.headers)
        reader = ReplyReader(x.call.protocol, streamed=streamed)
        tap, heard_last = taps.chain(streamed=streamed), taps.translated is not None
        headers = returned(reply.headers)
        length = content_length(reply.headers)
        if length is not None and tap is None:
            headers.append((b"content-length", length))
        # until a byte of the body is here nothing goes to the client, so that the step may still go elsewhere
        chunk = await reply.read()
        x.first_byte_at = self._clock()
        if not reply.done:
            self._driver.tell(ev.StepStarted(step=StepId(x.step)))
        headers += self._own_headers(x)
        await x.start(reply.status, headers)
        last = b""
        try:
            while True:
                done = reply.done
                last = chunk or last
                out = chunk if tap is None else tap.feed(chunk)
                if done and tap is not None:
                    out += tap.finish()
                reader.feed(out if heard_last else chunk)
                if done:
                    break
                if out:
                    await x.write(out, more=True)
                chunk = await reply.read()
        except EngineError as error:
            await self._break_off(x, error, orderly=streamed and (not last or last.endswith(EVENT_ENDS)))
            raise
        x.stop_watching()
        try:
            # The client gets its last byte before we read what the reply means: the loop writes when this turn of it
            # is over, and resumes us before anything that the client could send next.
            await x.write(out, more=False)
            await asyncio.sleep(0)
        finally:
            self._finish(x, engine, reply, reader)

    async def _break_off(self, x: Exchange, error: EngineError, *, orderly: bool) -> None:
        """The engine failed in mid-reply. A stream can still say so; anything else is cut."""
        if orderly:
            await x.write(shapes.stream_error(x.protocol, error), more=False)

    def _finish(self, x: Exchange, engine: Engine, reply: UpstreamReply, reader: ReplyReader) -> None:
        """The reply is whole, whatever it says; a failure of ours in reading it is not the client's."""
        try:
            self._read_end(x, engine, reply, reader)
        except Exception:
            log.exception("the end of a step could not be read")
            self._ledger.fell_back("reply")
            self._driver.tell(ev.StepFailed(step=StepId(x.step), reason="unread", retryable=False))

    def _read_end(self, x: Exchange, engine: Engine, reply: UpstreamReply, reader: ReplyReader) -> None:
        now = self._driver.now()
        assert x.resolved is not None
        self._monitor.succeeded(engine)
        if reply.status >= 400:
            self._resolver.failed(x.resolved, now)
            self._driver.tell(
                ev.StepFailed(step=StepId(x.step), reason=f"status_{reply.status}", retryable=False)
            )
            self._ledger.failed(x, reply.status, f"the engine answered {reply.status}")
            return
        parsed = reader.finish()
        outcome = self._resolver.replied(x.resolved, parsed.evidence(), now)
        finished = self._ledger.finished(x, reply.status, parsed, outcome)
        self._driver.tell(finished)
        if finished.final:
            self._quotas.program_over(x.resolved.tenant, x.resolved.program_id)
            self._engines.prefixes.forget(x.resolved.program_id)
        else:
            self._engines.prefixes.keep(x.resolved.program_id, x.protocol, x.raw)

    def _own_headers(self, x: Exchange) -> list[tuple[bytes, bytes]]:
        resolved, decision = x.resolved, x.decision
        if not self._show_headers or resolved is None:
            return []
        overhead_s = time.perf_counter() - x.started_clock - x.queue_s
        if x.first_byte_at is not None and x.dispatched_at is not None:
            overhead_s -= x.first_byte_at - x.dispatched_at
        headers = [
            (b"x-agentserve-program", printable(resolved.name)),
            (b"x-agentserve-step", x.step.encode("ascii")),
            (b"x-agentserve-identity", printable(resolved.source)),
            (b"x-agentserve-confidence", b"%.2f" % resolved.confidence),
            (b"x-agentserve-queue-ms", b"%.1f" % (x.queue_s * 1e3)),
            (b"x-agentserve-overhead-ms", b"%.2f" % (max(overhead_s, 0.0) * 1e3)),
        ]
        if decision is not None:
            headers += [
                (b"x-agentserve-engine", printable(x.engine)),
                (b"x-agentserve-cached-tokens", b"%d" % decision.expected_cached_tokens),
                (b"x-agentserve-reason", printable(decision.reason)),
            ]
        return headers


EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


def parse_body(raw: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """The request's JSON object."""
    if headers.get("content-encoding", "identity") != "identity":
        raise BadRequest(
            "compressed request bodies are not read", field="content-encoding", remedy="send it plain"
        )
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the request body is not a JSON object")
    return body


def is_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    """Does the engine answer with server-sent events?"""
    for name, value in headers:
        if name == b"content-type":
            return b"event-stream" in value
    return False


def rejection(decision: do.Reject) -> Overloaded:
    """What the scheduler's refusal is to a client."""
    why = REJECTED.get(decision.reason, decision.reason.replace("_", " "))
    return Overloaded(
        why,
        remedy="try again after the given time",
        retry_after_s=decision.retry_after_s,
        status=decision.status,
    )


def reason_of(error: BaseException) -> str:
    """One low-cardinality word for a failure."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def printable(text: str) -> bytes:
    """A header value: ASCII, on one line."""
    return text.encode("ascii", "backslashreplace").replace(b"\r", b" ").replace(b"\n", b" ")


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
