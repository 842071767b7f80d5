"""The hot path: a client's step, read, attributed to its program, put before the scheduler, and sent where that says.

Rule: before the first byte a step may go elsewhere once; after it, never. Every wait ends by itself, by a deadline or
by the client leaving. What the scheduler was told begins with `StepArrived` and ends with exactly one of finished,
failed or gone.
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
from agentserve.errors import AgentServeError, BadRequest, EngineError, NotFound, Overloaded
from agentserve.live import shapes
from agentserve.live.asgi import LEFT_EXTENSION, Receive, Scope, Send, StreamCut
from agentserve.live.auth import CALL, Keys, authorise
from agentserve.live.driver import Driver, Ticket
from agentserve.live.engines import Engines
from agentserve.live.exchange import Exchange
from agentserve.live.headers import texts_of
from agentserve.live.outcome import Ledger
from agentserve.live.passage import ATTEMPTS_MAX, Passage, reason_of, uncancel
from agentserve.live.quotas import Quotas
from agentserve.live.reading import Reading
from agentserve.live.responses import Responses
from agentserve.live.wire import Call, Protocol

log = logging.getLogger("agentserve.relay")

ELSEWHERE_WAIT_S = 10.0  # how long a step whose engine failed waits for another one
NO_ENGINE_RETRY_S = 5.0
REJECTED = {
    "queue_timeout": "no place came free in time",
    "overloaded": "too many steps wait",
    "draining": "this gateway is shutting down",
    "no_engine": "no engine can take this step",
}
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
        passage: Passage,
        ledger: Ledger,
        keys: Keys,
        quotas: Quotas,
        responses: Responses,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # a setting is found by way of Python's slowest look-up
        self._body_bytes_max = settings.limits.body_bytes_max
        self._waiting_bytes_max = settings.limits.waiting_bytes_max
        self._driver = driver
        self._resolver = resolver
        self._engines = engines
        self._passage = passage
        self._ledger = ledger
        self._keys = keys
        self._quotas = quotas
        self._responses = responses
        self._clock = clock
        self.reading = Reading()
        self._steps = 0
        self._waiting_bytes = 0  # of the requests that wait for a place
        self._boot = f"{int(clock() * 1000):x}"
        self.open: set[Exchange] = set()  # under way
        self.draining = False
        self.elsewhere_wait_s = ELSEWHERE_WAIT_S

    async def serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        protocol: Protocol,
        path: str,
        program: str | None,
    ) -> None:
        """One request; `path` is the engine's, `program` what the client's path named in front of it."""
        x = Exchange(scope, receive, send, protocol=protocol, path=path, program=program)
        x.started_clock = time.perf_counter()
        x.arrived_at = self._clock()
        self.open.add(x)
        try:
            await self._serve(x)
        except asyncio.CancelledError:
            if not x.left:
                raise
            uncancel()
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
        call = self.reading.reader.read(path, {}, body)
        return 0 if call is None else self._ledger.lengths.estimate(call)

    async def _refuse(self, x: Exchange, error: Exception) -> None:
        try:
            if x.left or x.ended:
                return
            if x.started:
                raise StreamCut(str(error)) from error
            status = await x.refuse(error, self._passage.own_headers(x))
            self._ledger.refused(x, status, error)
        finally:
            drop_frames(error)

    # -- reading the request

    async def _serve(self, x: Exchange) -> None:
        x.headers = texts_of(x.scope["headers"])
        now = self._driver.now()
        x.principal = authorise(self._keys, x.headers, CALL, x.arrived_at)
        if self._passage.via in x.headers.get("via", ""):
            raise BadRequest(
                "this request came from this gateway itself", remedy="take its own address out of its engines"
            )
        if self.draining:
            raise Overloaded(
                REJECTED["draining"],
                remedy="send it again, to another gateway",
                retry_after_s=1.0,
                status=503,
            )
        self._quotas.request(x.principal.tenant, now)
        x.raw = await x.read_body(self._body_bytes_max)
        call = x.call = self.reading.of(x)
        if not self._engines.reachable(call.model):
            raise self._unserved(call.model)
        if x.protocol == "responses" and await self._hangs_together(x):
            return
        x.watch_client()
        await self._schedule(x, now)

    def _unserved(self, model: str) -> AgentServeError:
        """Why no engine can take a step for this model."""
        if not self._engines.known_model(model):
            return NotFound(f"the model {model!r} is not served here", remedy="GET /v1/models lists what is")
        return Overloaded(
            "no engine for this model answers at the moment",
            remedy="try again soon",
            retry_after_s=NO_ENGINE_RETRY_S,
            status=503,
        )

    def _rejected(self, decision: do.Reject, model: str) -> AgentServeError:
        """What a step is told that waited in vain: of an engine that is away no place comes free."""
        if decision.reason == "queue_timeout" and not self._engines.reachable(model):
            return self._unserved(model)
        return rejection(decision)

    async def _hangs_together(self, x: Exchange) -> bool:
        """Responses refer to earlier ones; True when the client does not wait and has its answer already."""
        assert x.principal is not None
        await self._responses.recalled(x.principal.tenant, x.body)
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
                await self.serve(
                    scope, receive, send, protocol=x.protocol, path=x.upstream_path, program=x.named
                )
            finally:
                ended(status, b"".join(parts))

        return asyncio.get_running_loop().create_task(run())

    # -- the scheduler

    async def _schedule(self, x: Exchange, now: float) -> None:
        call, tenant = x.call, x.principal
        assert call is not None
        assert tenant is not None
        self._steps += 1
        x.step = f"{self._boot}-{self._steps:x}"
        resolved = x.resolved = self._resolve(x, call, tenant.tenant, now)
        self._ledger.lengths.first(call, x.protocol, x.whole)
        prompt_tokens = self._ledger.lengths.estimate(call)
        if x.thread is not None:
            prompt_tokens += x.thread.tokens
        try:
            self._quotas.step(tenant.tenant, resolved.program_id, prompt_tokens, now)
        except AgentServeError:
            self._resolver.failed(resolved, now)
            raise
        x.tokens_counted = True
        ticket = self._driver.submit(self._arrival(x, prompt_tokens))
        x.reasons = ticket.reasons
        told = False
        try:
            decision = ticket.decision.result() if ticket.decision.done() else await self._place(x, ticket)
            while True:
                if isinstance(decision, do.Reject):
                    raise self._rejected(decision, call.model)
                x.decision = decision
                x.dispatched_at = x.now()
                x.attempts += 1
                failure = await self._passage.attempt(x, decision)
                if failure is None:
                    told = True
                    return
                x.tried()
                decision = await self._elsewhere(x, ticket, failure)
        except BaseException as error:
            if x.attempts > len(x.tries) and x.first_byte_at is None:
                x.tried()
            if not told:
                self._over(x, ticket, error)
            raise

    async def _place(self, x: Exchange, ticket: Ticket) -> do.Dispatch | do.Reject:
        """What is decided of a step that waits. Its request is held meanwhile; what is held is bounded."""
        size = len(x.raw)
        if self._waiting_bytes + size > self._waiting_bytes_max:
            ticket.cancel()
            raise Overloaded(
                "the steps that wait hold too many bytes",
                remedy="send it again in a while",
                retry_after_s=NO_ENGINE_RETRY_S,
                status=503,
            )
        self._waiting_bytes += size
        x.rest()
        since = x.now()
        try:
            return await ticket.decision
        finally:
            x.queue_s += x.now() - since
            self._waiting_bytes -= size

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
            prefix=call.prefix,
            undivided=len(call.prefix) == 1,
            workflow=WorkflowId(asked.workflow) if asked.workflow else None,
            role=resolved.role_fingerprint,
            parent=resolved.parent_id,
            relation=resolved.relation,
            node=asked.node,
            priority=asked.priority,
            deadline_s=asked.deadline_s,
            tools_offered=len(call.tools),
            returned=resolved.returns,
            measured=resolved.tool_seconds,
            human=resolved.human,
            streamed=call.stream,
        )

    async def _elsewhere(self, x: Exchange, ticket: Ticket, failure: EngineError) -> do.Dispatch | do.Reject:
        """The engine failed before the first byte: the next decision, or the failure itself."""
        if x.attempts >= ATTEMPTS_MAX:
            raise failure
        x.aborted = ""
        # a scheduler that lost the engine has put the step back by itself
        if x.reasons[-1] is x.decision:
            ticket.failed(reason_of(failure))
        self._ledger.retried(x, failure)
        since = x.now()
        try:
            async with asyncio.timeout(self.elsewhere_wait_s):
                decision = await asyncio.shield(ticket.again())
        except TimeoutError:
            raise failure from None
        finally:
            x.queue_s += x.now() - since
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
            if ticket.decision.done():
                self._driver.tell(
                    ev.StepFailed(step=StepId(x.step), reason=reason_of(error), retryable=False)
                )
            else:  # it waits for a place that it does not want any more
                ticket.cancel()
            self._ledger.failed(
                x, shapes.status_of(error) if isinstance(error, Exception) else 499, str(error)
            )


def drop_frames(error: BaseException | None) -> None:
    """The error was told. Its frames hold the request, and it: all of them would wait for the collector."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def rejection(decision: do.Reject) -> Overloaded:
    """What the scheduler's refusal is to a client."""
    why = REJECTED.get(decision.reason, decision.reason.replace("_", " "))
    return Overloaded(
        why,
        remedy="try again after the given time",
        retry_after_s=decision.retry_after_s,
        status=decision.status,
    )
