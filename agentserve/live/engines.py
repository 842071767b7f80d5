"""The engines that this gateway can reach: their adapters, transports, health, and what is under way on each.

Rule: engines come from settings and from the admin API, never from a request. This is also the scheduler's pair of
hands: native pins, warms and aborts go through here, and the answer is the adapter's receipt.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from agentserve.config import EngineSettings, LimitSettings
from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.ids import EngineId
from agentserve.errors import AgentServeError, BadRequest, ConfigError, NotFound
from agentserve.live.breaker import Breaker
from agentserve.live.upstream import Upstream
from agentserve.live.upstream.hosted import HostedUpstream
from agentserve.live.upstream.inprocess import InProcessUpstream
from agentserve.live.upstream.lean import LeanUpstream
from agentserve.ports import (
    Capabilities,
    EngineAdapter,
    EngineLoad,
    EngineOptions,
    Outcome,
    ProgramPrefix,
    Receipt,
)

PREFIX_BYTES_MAX = 128 * 1024 * 1024  # of programs' last prompts, kept for warming
ENGINES_MAX = 1024
STOP_S = 5.0
COUNT_S = 5.0  # for an engine's tokeniser

MakeAdapter = Callable[[EngineOptions], EngineAdapter]
Detect = Callable[[EngineSettings], Awaitable[EngineSettings]]


class Abortable(Protocol):
    """Something under way on an engine that can be told to stop."""

    def abort(self, reason: str) -> None: ...


@dataclass(slots=True, eq=False, kw_only=True)
class Engine:
    """One inference server, as the live gateway sees it."""

    id: EngineId
    settings: EngineSettings
    adapter: EngineAdapter
    upstream: Upstream
    breaker: Breaker = field(default_factory=Breaker)
    capabilities: Capabilities | None = None  # None until it was asked
    unasked: bool = False  # its adapter is a new one
    load: EngineLoad | None = None
    draining: bool = False
    up: bool = False
    steps: int = 0  # sent so far
    failures: int = 0
    running: dict[str, Abortable] = field(default_factory=dict)
    seen_at: float | None = None  # by a probe
    heard_at: float = -1e18  # a byte of some reply came; on the driver's clock

    @property
    def models(self) -> tuple[str, ...]:
        if self.settings.models:
            return self.settings.models
        return self.capabilities.models if self.capabilities is not None else ()

    @property
    def plain_url(self) -> str | None:
        """Where another process of ours can reach it, with the lean client."""
        return self.upstream.url if isinstance(self.upstream, LeanUpstream) else None

    def serves(self, model: str) -> bool:
        """May a step for this model go here? An engine that names no models takes any."""
        models = self.models
        return not model or not models or model in models

    def speaks(self, protocol: str) -> bool:
        """Does it serve this protocol? One that was not asked yet is given the benefit of the doubt."""
        return self.capabilities is None or protocol in self.capabilities.protocols


class Prefixes:
    """Each program's last request, as bytes, least recently used first out."""

    def __init__(self, *, bytes_max: int = PREFIX_BYTES_MAX) -> None:
        self._kept: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._bytes = 0
        self._bytes_max = bytes_max

    def keep(self, program: str, protocol: str, body: bytes) -> None:
        """Remember the request; the one before is forgotten."""
        kept, size = self._kept, len(body)
        old = kept.pop(program, None)
        if old is not None:
            self._bytes -= len(old[1])
        if size > self._bytes_max // 8:
            return
        kept[program] = (protocol, body)
        self._bytes += size
        while self._bytes > self._bytes_max:
            _, (_, gone) = self._kept.popitem(last=False)
            self._bytes -= len(gone)

    def forget(self, program: str) -> None:
        """The program is over."""
        old = self._kept.pop(program, None)
        if old is not None:
            self._bytes -= len(old[1])

    def get(self, program: str) -> ProgramPrefix | None:
        """What is known of the program's prompt."""
        kept = self._kept.get(program)
        if kept is None:
            return None
        return ProgramPrefix(protocol=kept[0], body=msgspec.json.decode(kept[1]))


class Engines:
    """All engines, in the order in which they were added."""

    def __init__(
        self,
        make_adapter: MakeAdapter,
        limits: LimitSettings | None = None,
        *,
        detect: Detect
        | None = None,  # names the kind of an engine of kind `auto`, or leaves it where it cannot
    ) -> None:
        self._make_adapter = make_adapter
        self._detect = detect
        self._limits = limits or LimitSettings()
        self._engines: dict[str, Engine] = {}
        self._tell: Callable[[ev.AnyEvent], None] = lambda event: None
        self._now: Callable[[], float] = lambda: 0.0
        self._watchers: list[Callable[[Engine], None]] = []
        self.prefixes = Prefixes()

    def __iter__(self) -> Iterator[Engine]:
        return iter(list(self._engines.values()))

    def __len__(self) -> int:
        return len(self._engines)

    def get(self, engine: str) -> Engine | None:
        return self._engines.get(engine)

    def __getitem__(self, engine: str) -> Engine:
        found = self._engines.get(engine)
        if found is None:
            raise NotFound(f"there is no engine {engine!r}", remedy="GET /admin/v1/engines lists them")
        return found

    # -- joining and leaving

    def tells(self, tell: Callable[[ev.AnyEvent], None], now: Callable[[], float]) -> None:
        """Whom to tell of engines that come and go, and whose clock counts: the driver's."""
        self._tell = tell
        self._now = now

    def watched_by(self, watcher: Callable[[Engine], None]) -> None:
        """Who looks after an engine that is added: the monitor."""
        self._watchers.append(watcher)

    async def add(self, settings: EngineSettings) -> Engine:
        """Take an engine in. It gets steps once it has answered a probe."""
        if not settings.id:
            raise BadRequest("an engine needs an id", field="id")
        if settings.id in self._engines:
            raise BadRequest(
                f"there is an engine {settings.id!r} already", field="id", remedy="choose another id"
            )
        if len(self._engines) >= ENGINES_MAX:
            raise BadRequest(f"there are {ENGINES_MAX} engines already", remedy="remove one first")
        adapter = self._adapter(settings)
        engine = Engine(
            id=EngineId(settings.id),
            settings=settings,
            adapter=adapter,
            upstream=self._transport(adapter, settings),
        )
        await adapter.start()
        self._engines[settings.id] = engine
        for watcher in self._watchers:
            watcher(engine)
        return engine

    async def recognise(self, engine: Engine) -> bool:
        """Ask an engine of kind `auto` what it is, as one that was away when it was added could not say.

        Whether it has another adapter now. Its connections stay: what runs there is not disturbed.
        """
        if self._detect is None or engine.settings.kind != "auto":
            return False
        settings = await self._detect(engine.settings)
        if settings.kind == "auto" or self._engines.get(engine.id) is not engine:
            return False
        await self._become(engine, settings)
        return True

    async def change(self, settings: EngineSettings) -> None:
        """Other settings for an engine. What runs there goes on, unless it is to be reached otherwise now."""
        engine, before = self[settings.id], self[settings.id].settings
        if engine.adapter.app is not None or _way(before) != _way(settings):
            await self.remove(settings.id)
            await self.add(settings)
            return
        await self._become(engine, settings)
        engine.unasked = True

    async def _become(self, engine: Engine, settings: EngineSettings) -> None:
        before, engine.adapter = engine.adapter, self._adapter(settings)
        engine.settings = settings
        await engine.adapter.start()
        await before.stop()

    def drain(self, engine_id: str, *, on: bool = True) -> Engine:
        """Give it no new steps; those under way finish."""
        engine = self[engine_id]
        engine.draining = on
        self._tell(ev.EngineReported(engine=engine.id, draining=on))
        return engine

    async def remove(self, engine_id: str) -> None:
        """Take it out: its steps are sent elsewhere or end with an error."""
        engine = self._engines.pop(engine_id, None)
        if engine is None:
            raise NotFound(f"there is no engine {engine_id!r}", remedy="GET /admin/v1/engines lists them")
        engine.up = False
        self._tell(ev.EngineLost(engine=engine.id, reason=ev.REMOVED))
        for running in list(engine.running.values()):
            running.abort("removed")
        await self._stop(engine)

    async def stop(self) -> None:
        """Close everything."""
        for engine in list(self._engines.values()):
            await self._stop(engine)
        self._engines.clear()

    @staticmethod
    async def _stop(engine: Engine) -> None:
        for closing in (engine.upstream.stop(), engine.adapter.stop()):
            try:
                async with asyncio.timeout(STOP_S):
                    await closing
            except TimeoutError:
                continue

    def _adapter(self, settings: EngineSettings) -> EngineAdapter:
        return self._make_adapter(
            EngineOptions(
                id=settings.id,
                kind=settings.kind,
                url=settings.url,
                models=settings.models,
                api_key=settings.api_key,
                kv_tokens=settings.kv_tokens,
                extra=settings.extra,
            )
        )

    def _transport(self, adapter: EngineAdapter, settings: EngineSettings) -> Upstream:
        if adapter.app is not None:
            return InProcessUpstream(adapter.app)
        url = adapter.url or settings.url
        wanted: Any = settings.extra.get("transport", "auto")
        if wanted not in ("auto", "lean", "httpx"):
            raise ConfigError(
                f"engine {settings.id}: transport {wanted!r} is not known", remedy="it is auto, lean or httpx"
            )
        connections_max = self._limits.upstream_connections_max
        if wanted == "lean" or (wanted == "auto" and url.startswith("http://")):
            return LeanUpstream(url, connections_max=connections_max)
        return HostedUpstream(url, connections_max=connections_max)

    # -- what the relay asks

    def known_model(self, model: str) -> bool:
        """Is there an engine for this model, up or not?"""
        for engine in self._engines.values():  # noqa: SIM110 - a generator would cost more than what it runs
            if engine.serves(model):
                return True
        return False

    def reachable(self, model: str) -> bool:
        """Is there an engine that could take a step for this model now?"""
        for engine in self._engines.values():  # noqa: SIM110 - as above
            if engine.up and not engine.draining and engine.serves(model):
                return True
        return False

    async def count_tokens(
        self, model: str, protocol: str, body: dict[str, Any], *, own: bool = False
    ) -> int | None:
        """How long a prompt is to the first engine that can tell; with `own`, to one whose memory we account for."""
        for engine in self:
            known = engine.capabilities
            if not (engine.up and engine.serves(model)) or (
                own and (known is None or known.kv_tokens is None)
            ):
                continue
            try:
                async with asyncio.timeout(COUNT_S):
                    counted = await engine.adapter.count_tokens(protocol, dict(body))
            except (AgentServeError, OSError, TimeoutError):
                continue
            if counted is not None:
                return counted
        return None

    # -- the scheduler's hands

    async def pin(self, decision: do.Pin) -> Receipt:
        engine = self._engines.get(decision.engine)
        if engine is None:
            return _GONE
        ttl_s = max(decision.until - self._now(), 0.0)
        return await engine.adapter.pin(
            decision.program, self.prefixes.get(decision.program), decision.tokens, ttl_s
        )

    async def unpin(self, decision: do.Unpin) -> Receipt:
        engine = self._engines.get(decision.engine)
        return _GONE if engine is None else await engine.adapter.unpin(decision.program)

    async def warm(self, decision: do.Warm) -> Receipt:
        engine = self._engines.get(decision.engine)
        prefix = self.prefixes.get(decision.program)
        if engine is None:
            return _GONE
        if prefix is None:
            return Receipt(outcome=Outcome.REFUSED, detail="the program's prompt is not kept")
        return await engine.adapter.warm(decision.program, prefix)

    def abort(self, decision: do.Abort) -> None:
        engine = self._engines.get(decision.engine)
        running = None if engine is None else engine.running.get(decision.step)
        if running is not None:
            running.abort(decision.reason)


def _way(settings: EngineSettings) -> tuple[str, Any]:
    """How an engine is reached."""
    return settings.url, settings.extra.get("transport")


_GONE = Receipt(outcome=Outcome.REFUSED, detail="the engine was removed")
