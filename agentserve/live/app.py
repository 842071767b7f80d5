"""The gateway as one ASGI application: the hot path beside everything else.

Rule: a request for an inference endpoint passes no framework and no middleware; all else (health, models, programs,
admin, documentation) is a Starlette application that the hot path does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from agentserve.config import Settings, TenantSettings
from agentserve.core import events as ev
from agentserve.core.board import Share
from agentserve.core.direct import Direct
from agentserve.core.identity import Resolver, unscoped
from agentserve.core.ids import ProgramId, TenantId
from agentserve.core.workflow import StepGraphs
from agentserve.errors import AgentServeError
from agentserve.live import views
from agentserve.live.auth import Keys
from agentserve.live.driver import Driver
from agentserve.live.engines import Engines
from agentserve.live.feed import Feed
from agentserve.live.foretold import Foretold
from agentserve.live.holdings import Pins
from agentserve.live.kept import Kept
from agentserve.live.lengths import Lengths
from agentserve.live.monitor import Monitor, ProbeSettings
from agentserve.live.outcome import Ledger
from agentserve.live.passage import Passage
from agentserve.live.quotas import Quotas
from agentserve.live.relay import Relay
from agentserve.live.responses import Responses
from agentserve.live.services import Services
from agentserve.live.wire import PATHS, split_path
from agentserve.live.workflows import Workflows
from agentserve.ports import Journal, Summaries, Telemetry

log = logging.getLogger("agentserve.gateway")

READY_S = 5.0  # how long the start waits for the engines' first answers
HOUSEKEEPING_S = 1.0  # often, for requests wait while programs are forgotten: a few each time, not hundreds


class Gateway:
    """The application. `Gateway.start` and `stop` are its lifespan, also where no server calls it."""

    def __init__(
        self,
        *,
        settings: Settings,
        driver: Driver,
        resolver: Resolver,
        engines: Engines,
        journal: Journal,
        telemetry: Telemetry,
        keys: Keys,
        quotas: Quotas | None = None,
        probes: ProbeSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.driver = driver
        self.resolver = resolver
        self.engines = engines
        self.telemetry = telemetry
        self.keys = keys
        self.quotas = quotas or Quotas(settings.tenants, program_idle_s=settings.scheduler.program_idle_s)
        if driver.hands is None:
            driver.hands = engines
        engines.tells(driver.tell, driver.now)
        engines.watched_by(lambda engine: journal.fact("engine", views.engine_fact(engine, clock())))
        self.monitor = Monitor(engines, driver.tell, now=driver.now, telemetry=telemetry, settings=probes)
        self.ledger = Ledger(
            journal=journal,
            telemetry=telemetry,
            quotas=self.quotas,
            now=driver.now,
            lengths=Lengths(partial(engines.count_tokens, own=True)),
            workflow=self._workflow_of,
        )
        passage = Passage(
            settings=settings,
            driver=driver,
            resolver=resolver,
            engines=engines,
            monitor=self.monitor,
            ledger=self.ledger,
            quotas=self.quotas,
        )
        self.responses = Responses(Kept(responses_max=settings.limits.stored_responses_max))
        self.relay = Relay(
            settings=settings,
            driver=driver,
            resolver=resolver,
            engines=engines,
            passage=passage,
            ledger=self.ledger,
            keys=keys,
            quotas=self.quotas,
            responses=self.responses,
            clock=clock,
        )
        self.clock = clock
        self.started_at = clock()
        self.not_started: Exception | None = None  # why it could not start
        self._aged_at = driver.now()  # when what nobody said any more was last forgotten
        self.workflows = Workflows(journal)
        self.summaries: Summaries | None = None  # of programs, where a store keeps them
        self.graphs: StepGraphs | None = None  # what is learned of workflows, where someone learns it
        self.feed = Feed(clock=clock)
        self.pins = Pins()
        self.direct = Direct(driver.scheduler.board)
        self.foretold = Foretold(driver.scheduler.board, self.feed.owner)
        for looker in (self.pins, self.direct, self.foretold):
            driver.hear(looker.hears)
        driver.listen(self.feed.heard)
        for tenant in settings.tenants:
            self.set_tenant(tenant)
        self._housekeeping: asyncio.Task[None] | None = None
        self._services = Services(self)
        self._rest: Starlette = self._services.application()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            program, path = split_path(scope["path"])
            if scope["method"] == "POST":
                protocol = PATHS.get(path)
                if protocol is not None:
                    query = scope["query_string"]
                    target = f"{path}?{query.decode('latin-1')}" if query else path
                    await self.relay.serve(
                        scope, receive, send, protocol=protocol, path=target, program=program
                    )
                    return
            if program is not None:  # its base URL serves all of `/v1/`; only steps mind whose they are
                scope = {**scope, "path": path, "raw_path": quote(path).encode("ascii")}
            await self._rest(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    def not_taken(self, status: int) -> None:
        """The listening side refused bytes that are no request of which anybody else could know."""
        self.telemetry.count("refusals", status=str(status), reason="not_taken")

    # -- programs

    def new_program_name(self) -> str:
        """A name for a program whose client did not choose one."""
        return f"run-{uuid.uuid4().hex[:20]}"

    def end_program(self, program: ProgramId, reason: str) -> bool:
        """The program is over; what is kept for it may go. False when it was not known."""
        known = self.resolver.ended(program, self.driver.now())
        self.driver.tell(ev.ProgramEnded(program=program, reason=reason))
        self.quotas.program_over(unscoped(program)[0], program)
        self._forget(program)
        return known

    def _forget(self, program: str) -> None:
        """Let go of what was kept for its next step."""
        self.engines.prefixes.forget(program)
        self.ledger.forget(program)

    def program_view(self, program: ProgramId) -> dict[str, Any] | None:
        """A live program, as an operator or its owner may see it."""
        board = self.driver.scheduler.board
        return views.program(board.programs.get(program), self.driver.now(), board, self.pins)

    def _workflow_of(self, program: ProgramId) -> str | None:
        found = self.driver.scheduler.board.programs.get(program)
        return found.workflow if found is not None else None

    def set_tenant(self, tenant: TenantSettings) -> None:
        """A tenant's limits and share, from now on."""
        self.quotas.set(tenant)
        name, scheduler = TenantId(tenant.id), self.driver.scheduler
        scheduler.board.shares[name] = Share(
            weight=tenant.weight, priority_max=tenant.priority_max, pin_share_max=tenant.pin_share_max
        )
        scheduler.policy.reshared(name, self.driver.now())

    # -- its life

    async def start(self) -> None:
        """Take the configured engines in and wait a moment for their first answers."""
        for engine in self.settings.engines:
            if self.engines.get(engine.id) is None:
                await self.engines.add(engine)
        if not await self.monitor.ready(READY_S):
            log.warning("not every engine has answered yet; the gateway starts without them")
        self._housekeeping = asyncio.get_running_loop().create_task(self._keep_house())
        self.responses.start()

    def leave(self) -> None:
        """On the way out: take nothing new, and end the streams that would never end."""
        self.relay.draining = True
        self.feed.close()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse what is new and wait for what is under way; False when some of it did not end in time."""
        self.relay.draining = True
        limit_s = self.settings.gateway.drain_timeout_s if timeout_s is None else timeout_s
        clock = self.driver.loop.time  # the client's seconds, whatever the scheduler's are
        until = clock() + limit_s
        while self.relay.open and clock() < until:  # noqa: ASYNC110 - requests come and go, no event does
            await asyncio.sleep(0.05)
        return not self.relay.open

    async def stop(self) -> None:
        """Drain, then close everything."""
        self.leave()
        if not await self.drain():
            log.warning(
                "%d requests were still under way when the time to drain was over", len(self.relay.open)
            )
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeping
        await self.responses.stop()
        await self.ledger.lengths.close()
        await self.monitor.stop()
        await self.driver.stop()
        await self.engines.stop()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            self.not_started = error
            if not isinstance(error, AgentServeError):
                log.exception("the gateway could not start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            with contextlib.suppress(Exception):
                self.keep_house(self.driver.now())

    def keep_house(self, now: float) -> None:
        """Now and then: forget programs that have been idle for too long, and what they said."""
        for program in self.resolver.expire(now):
            self._forget(program)
        # a message outlives one such period and not two: it is remembered for about as long as its program
        if now - self._aged_at >= self.settings.scheduler.program_idle_s:
            self._aged_at = now
            self.relay.reading.reader.canon.age()


def build_app(
    *,
    settings: Settings,
    driver: Driver,
    resolver: Resolver,
    engines: Engines,
    journal: Journal,
    telemetry: Telemetry,
    keys: Keys,
) -> Gateway:
    """The gateway, ready to be served; its lifespan starts and stops the engines."""
    return Gateway(
        settings=settings,
        driver=driver,
        resolver=resolver,
        engines=engines,
        journal=journal,
        telemetry=telemetry,
        keys=keys,
    )


@contextlib.asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[Gateway]:
    """The gateway started, and stopped at the end."""
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()
