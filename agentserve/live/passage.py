"""One attempt of a step at one engine: the request as the engine gets it, and its reply on the way to the client.

Rule: bytes of the reply pass unchanged unless a tap stands between, and whatever is read from them is read beside.
Until a byte of the reply's body is here nothing goes to the client, and a failure is returned, so that the step may go
elsewhere; after that a failure is raised. The scheduler hears of the first byte and of the whole reply from here.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache, partial
from types import coroutine
from typing import Any

import msgspec

from agentserve.config import Settings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.identity import Resolver
from agentserve.core.ids import StepId
from agentserve.errors import BadRequest, EngineBroke, EngineError, EngineUnreachable
from agentserve.live.driver import Driver
from agentserve.live.engines import Engine, Engines
from agentserve.live.exchange import Exchange
from agentserve.live.headers import forwarded
from agentserve.live.monitor import Monitor
from agentserve.live.outcome import Ledger
from agentserve.live.pouring import BUSY_STATUSES, Pouring, check_answer
from agentserve.live.quotas import Quotas
from agentserve.live.splice import ask_for_usage, wants_asking
from agentserve.live.taps import Taps
from agentserve.live.translate import Translation, translation
from agentserve.live.upstream import Deadlines, UpstreamReply
from agentserve.live.wire import Reply
from agentserve.live.workers.frames import CARRIES, Broke, Carried, Order
from agentserve.ports import Hints, Outgoing

log = logging.getLogger("agentserve.relay")

ATTEMPTS_MAX = 2
HEADERS_REMEMBERED = 1_024  # names and values that many replies share
_encode = msgspec.json.encode
_EMPTY: dict[str, Any] = {}


class Passage:
    """The way of every step to an engine and back."""

    def __init__(
        self,
        *,
        settings: Settings,
        driver: Driver,
        resolver: Resolver,
        engines: Engines,
        monitor: Monitor,
        ledger: Ledger,
        quotas: Quotas,
    ) -> None:
        self._driver = driver
        self._resolver = resolver
        self._engines = engines
        self._monitor = monitor
        self._ledger = ledger
        self._quotas = quotas
        self._show_headers = settings.gateway.response_headers
        limits = settings.limits
        self.via = (
            f"1.1 agentserve-{uuid.uuid4().hex[:16]}"  # by which a request that comes back here is known
        )
        self._deadlines = Deadlines(
            connect_s=limits.connect_timeout_s,
            first_byte_s=limits.first_byte_timeout_s,
            idle_s=limits.idle_stream_timeout_s,
            overall_s=limits.overall_timeout_s,
        )

    async def attempt(self, x: Exchange, decision: do.Dispatch) -> EngineError | None:
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
            # no longer under way: should this failure cost the engine its place, nobody need stop the step there
            engine.running.pop(x.step, None)
            error.engine = error.engine or engine.id
            self._monitor.failed(engine, reason_of(error))
            if (
                x.started
                or x.attempts >= ATTEMPTS_MAX
                or not isinstance(error, (EngineUnreachable, EngineBroke))
            ):
                raise
            return error.with_traceback(None)  # it outlives these frames, which hold it and the request
        except asyncio.CancelledError:
            if x.left or not x.aborted:
                raise
            uncancel()
            away = EngineUnreachable(f"the engine went away: {x.aborted}", engine=engine.id)
            if x.started:
                raise away from None
            return away
        finally:
            engine.running.pop(x.step, None)

    async def _exchange_with(self, x: Exchange, engine: Engine, decision: do.Dispatch) -> EngineError | None:
        outgoing, payload, taps = self._prepare(x, engine, decision)
        headers = encoded(outgoing.headers)
        carry = x.scope.get("extensions", _EMPTY).get(CARRIES)
        assert x.call is not None
        if carry is not None and engine.plain_url is not None and taps.plain and x.call.stream:
            order = Order(
                url=engine.plain_url,
                path=outgoing.path,
                headers=headers,
                payload=None if payload is x.raw else payload,
                protocol=x.call.protocol,
                filters_usage=taps.filters_usage,
                answer_headers=self.own_headers(x),
                deadlines=self._deadlines,
                may_give_way=x.attempts < ATTEMPTS_MAX and self._alternatives(x, engine),
            )
            return self._carried(x, engine, await carry(order, partial(self._carrying, x, engine)))
        reply = await engine.upstream.send("POST", outgoing.path, headers, payload, deadlines=self._deadlines)
        try:
            if reply.status in BUSY_STATUSES and x.attempts < ATTEMPTS_MAX and self._alternatives(x, engine):
                return self._gave_way(engine, reply.status)
            check_answer(reply)
            await self._relay(x, engine, reply, taps)
        finally:
            reply.close()
        return None

    def _gave_way(self, engine: Engine, status: int) -> EngineError:
        self._monitor.suspect(engine)
        return EngineUnreachable(f"engine {engine.id} answered {status}", engine=engine.id)

    def _alternatives(self, x: Exchange, engine: Engine) -> bool:
        assert x.call is not None
        return any(
            other is not engine and other.up and not other.draining and other.serves(x.call.model)
            for other in self._engines
        )

    def _prepare(self, x: Exchange, engine: Engine, decision: do.Dispatch) -> tuple[Outgoing, bytes, Taps]:
        """What the engine gets, and what stands between its reply and the client."""
        fresh = x.attempts == 1  # an adapter has not had its way with the body yet
        body = (x.body if fresh else None) or x.whole()
        taps = Taps()
        outgoing = Outgoing(
            protocol=x.protocol,
            path=x.upstream_path,
            body=body,
            headers=forwarded(x.scope["headers"], x.headers),
        )
        came_by = outgoing.headers.get("via")
        outgoing.headers["via"] = self.via if came_by is None else f"{came_by}, {self.via}"
        if not engine.speaks(x.protocol):
            made = self._translate(x, engine, x.whole())
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
        return Hints(
            program=resolved.program_id,
            tenant=resolved.tenant,
            step=x.step,
            priority=decision.priority,
            cache_salt=resolved.tenant if self._quotas.salts(resolved.tenant) else None,
            expected_output_tokens=call.extensions.output_tokens_expected,
            program_final=resolved.final,
            traceparent=self._ledger.traceparent(x),
        )

    async def _relay(self, x: Exchange, engine: Engine, reply: UpstreamReply, taps: Taps) -> None:
        """The reply, piece by piece, to the client and to the reader beside."""
        assert x.call is not None
        pouring = Pouring(reply, taps, x.call.protocol)
        await pouring.first()
        self._began(x, engine, whole=reply.done)
        await x.start(reply.status, pouring.headers + self.own_headers(x))
        last = await pouring.rest(x.write)
        x.stop_watching()
        try:
            # The client gets its last byte before we read what the reply means: the loop writes when this turn of it
            # is over, and resumes us before anything that the client could send next.
            await x.write(last, more=False)
            await end_of_turn()
        finally:
            self._finish(x, engine, reply.status, pouring.reader.finish)

    def _began(self, x: Exchange, engine: Engine, *, whole: bool = False) -> None:
        """The first byte of the reply's body is here, perhaps with all others."""
        x.first_byte_at = x.now()
        self._monitor.heard(engine)
        if not whole:
            self._driver.tell(ev.StepStarted(step=StepId(x.step)))

    def _carrying(self, x: Exchange, engine: Engine) -> None:
        """A worker has the first byte, and the client soon."""
        x.started = True
        self._began(x, engine)

    def _carried(self, x: Exchange, engine: Engine, ending: Carried | Broke) -> EngineError | None:
        """A worker has relayed the reply, or could not."""
        if isinstance(ending, Broke):
            x.ended = ending.ended
            raise ending.error()
        if ending.gave_way:
            return self._gave_way(engine, ending.status)
        x.ended = True
        x.stop_watching()
        self._finish(x, engine, ending.status, ending.read)
        return None

    def _finish(self, x: Exchange, engine: Engine, status: int, read: Callable[[], Reply]) -> None:
        """The reply is whole, whatever it says; a failure of ours in reading it is not the client's."""
        try:
            self._read_end(x, engine, status, read)
        except Exception:
            log.exception("the end of a step could not be read")
            self._ledger.fell_back("reply")
            self._driver.tell(ev.StepFailed(step=StepId(x.step), reason="unread", retryable=False))

    def _read_end(self, x: Exchange, engine: Engine, status: int, read: Callable[[], Reply]) -> None:
        now = self._driver.now()
        assert x.resolved is not None
        assert x.call is not None
        self._monitor.succeeded(engine)
        if status >= 400:
            self._resolver.failed(x.resolved, now)
            self._driver.tell(ev.StepFailed(step=StepId(x.step), reason=f"status_{status}", retryable=False))
            self._ledger.failed(x, status, f"the engine answered {status}")
            return
        parsed = read()
        outcome = self._resolver.replied(x.resolved, parsed.evidence(x.call.said.told), now)
        finished = self._ledger.finished(x, status, parsed, outcome)
        self._driver.tell(finished)
        if finished.final:
            self._quotas.program_over(x.resolved.tenant, x.resolved.program_id)
            self._engines.prefixes.forget(x.resolved.program_id)
        else:
            self._engines.prefixes.keep(x.resolved.program_id, x.protocol, x.raw)

    def own_headers(self, x: Exchange) -> list[tuple[bytes, bytes]]:
        """What we tell the client of its step, where that is wanted."""
        resolved, decision = x.resolved, x.decision
        if not self._show_headers or resolved is None:
            return []
        until = x.now()
        if x.first_byte_at is not None and x.dispatched_at is not None:
            until -= x.first_byte_at - x.dispatched_at
        headers = [
            (b"x-agentserve-program", printable(resolved.name)),
            (b"x-agentserve-step", x.step.encode("ascii")),
            (b"x-agentserve-identity", printable(resolved.source)),
            (b"x-agentserve-confidence", two_places(resolved.confidence)),
            (b"x-agentserve-queue-ms", b"%.1f" % (x.queue_s * 1e3)),
            (b"x-agentserve-overhead-ms", b"%.2f" % (x.own_s(until) * 1e3)),
        ]
        if decision is not None:
            headers += [
                (b"x-agentserve-engine", printable(x.engine)),
                (b"x-agentserve-cached-tokens", b"%d" % decision.expected_cached_tokens),
                (b"x-agentserve-reason", printable(decision.reason)),
            ]
        return headers


@coroutine
def end_of_turn() -> Generator[None, None, None]:
    """Until the loop comes by again: what it does for `sleep(0)`, without asking how long."""
    yield


def reason_of(error: BaseException) -> str:
    """One low-cardinality word for a failure."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


@lru_cache(HEADERS_REMEMBERED)
def header_name(name: str) -> bytes:
    """A header's name as it is sent."""
    return name.encode("latin-1")


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as they are sent: values in the bytes that they came in, or in UTF-8 where we put a name there."""
    try:
        return [(header_name(name), value.encode("latin-1")) for name, value in headers.items()]
    except UnicodeEncodeError:
        return [(header_name(name), header_value(value)) for name, value in headers.items()]


def header_value(value: str) -> bytes:
    """One value."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace")


@lru_cache(HEADERS_REMEMBERED)
def two_places(share: float) -> bytes:
    """A share of one, in hundredths."""
    return b"%.2f" % share


@lru_cache(HEADERS_REMEMBERED)
def printable(text: str) -> bytes:
    """A header value: ASCII, on one line."""
    return text.encode("ascii", "backslashreplace").replace(b"\r", b" ").replace(b"\n", b" ")


def uncancel() -> None:
    """The cancellation was ours, and has had its effect."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
