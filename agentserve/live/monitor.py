"""Watches the engines: asks each what it is and how it does, and says when one is lost or back.

Rule: the only place that tells `EngineLost` and `EngineBack`. An engine is lost when its breaker opens, from traffic
or from probes, and back when a probe succeeds; what it said of itself before counts no more after that. One task an
engine, each probe bounded in time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from agentserve.core import events as ev
from agentserve.core.ids import EngineId, ProgramId
from agentserve.errors import AgentServeError, EngineTimeout
from agentserve.live.breaker import State
from agentserve.live.engines import Engine, Engines
from agentserve.ports import EngineAdapter, ReportsHoldings, Telemetry

log = logging.getLogger("agentserve.engines")

NAME_MODELS = "name its `models` in the settings, or does it want a key (`api_key_env`)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """How often, and how long a probe may take."""

    interval_s: float = 2.0
    timeout_s: float = 5.0
    ask_again_s: float = 300.0  # capabilities may change under a running engine


class Monitor:
    """All engines' watchers."""

    def __init__(
        self,
        engines: Engines,
        tell: Callable[[ev.AnyEvent], None],
        *,
        now: Callable[[], float],
        telemetry: Telemetry | None = None,
        settings: ProbeSettings | None = None,
    ) -> None:
        self._engines = engines
        self._tell = tell
        self._now = now
        self._telemetry = telemetry
        self._settings = settings or ProbeSettings()
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._listened: dict[str, EngineAdapter] = {}
        self._urgent: dict[str, asyncio.Event] = {}
        self._first: dict[str, asyncio.Event] = {}
        engines.watched_by(self.watch)

    def watch(self, engine: Engine) -> None:
        """Begin to look after an engine."""
        loop = asyncio.get_running_loop()
        self._urgent[engine.id] = asyncio.Event()
        self._first[engine.id] = asyncio.Event()
        if self._telemetry is not None:  # should it never answer, it is known to be away
            self._telemetry.gauge("engine_up", 0.0, engine=engine.id)
        self._tasks[engine.id] = [loop.create_task(self._watch(engine))]
        self._listen(engine)

    def _listen(self, engine: Engine) -> None:
        """Follow the KV events of the adapter that the engine has now."""
        watching, *listening = self._tasks[engine.id]
        for task in listening:
            task.cancel()
        self._tasks[engine.id] = [watching]
        self._listened[engine.id] = engine.adapter
        if isinstance(engine.adapter, ReportsHoldings):
            task = asyncio.get_running_loop().create_task(self._holdings(engine, engine.adapter))
            self._tasks[engine.id].append(task)

    async def ready(self, timeout_s: float) -> bool:
        """Wait until each engine was asked once; False when that took too long."""
        waits = [asyncio.ensure_future(first.wait()) for first in self._first.values()]
        if not waits:
            return True
        _, late = await asyncio.wait(waits, timeout=timeout_s)
        for waiting in late:
            waiting.cancel()
        return not late

    async def stop(self) -> None:
        """Watch no longer."""
        tasks = [task for group in self._tasks.values() for task in group]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.timeout_s)
        self._tasks.clear()

    # -- from traffic

    def failed(self, engine: Engine, reason: str) -> None:
        """A step failed there for a reason that is the engine's."""
        engine.failures += 1
        self.suspect(engine)
        if engine.breaker.step_failed(self._now(), reason) and engine.up:
            self._lost(engine, reason)

    def suspect(self, engine: Engine) -> None:
        """Look at it at once; until that was done it gets no new steps, so that a retry goes elsewhere."""
        if engine.up and any(other is not engine and other.up for other in self._engines):
            self._tell(ev.EngineReported(engine=engine.id, draining=True))
        urgent = self._urgent.get(engine.id)
        if urgent is not None:
            urgent.set()

    def heard(self, engine: Engine) -> None:
        """A byte of a reply came."""
        engine.heard_at = self._now()

    def succeeded(self, engine: Engine) -> None:
        """A step's reply came whole."""
        engine.breaker.step_succeeded()
        engine.heard_at = self._now()

    # -- probing

    async def _watch(self, engine: Engine) -> None:
        asked_at = -1e18
        while self._engines.get(engine.id) is engine:
            now = self._now()
            engine.breaker.probing()
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    if not engine.up or engine.unasked or now - asked_at > self._settings.ask_again_s:
                        await self._ask(engine)
                        asked_at = now
                    await self._look(engine)
                if self._engines.get(engine.id) is not engine:
                    break  # taken out while it answered
            except (TimeoutError, EngineTimeout):
                # one that is too busy to answer us while it serves clients is busy, not lost
                if engine.heard_at < now:
                    self._count_failure(engine, "the probe timed out")
            except (AgentServeError, OSError) as error:
                self._count_failure(engine, str(error))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                if engine.breaker.reason != reason:  # told once, not with each probe
                    log.exception("probing engine %s failed", engine.id)
                self._count_failure(engine, reason)
            else:
                self._answered(engine)
            self._first[engine.id].set()
            await self._pause(engine)
        tasks = self._tasks.get(engine.id, [])
        if tasks and tasks[0] is asyncio.current_task():  # none of that name was taken in since
            for task in self._tasks.pop(engine.id)[1:]:
                task.cancel()
            for known in (self._urgent, self._first, self._listened):
                known.pop(engine.id, None)

    async def _ask(self, engine: Engine) -> None:
        if await self._engines.recognise(engine):
            log.info("engine %s is of kind %s", engine.id, engine.settings.kind)
        if self._listened.get(engine.id) is not engine.adapter:
            self._listen(engine)
        adapter = engine.adapter
        known = await adapter.probe()
        if engine.adapter is adapter:
            engine.capabilities, engine.unasked = known, False

    async def _look(self, engine: Engine) -> None:
        before = engine.load
        load = engine.load = await engine.adapter.load()
        if engine.up and before is not None and before.boot and load.boot and before.boot != load.boot:
            log.warning("engine %s was restarted: what it held is gone", engine.id)
            self._lost(engine, "restarted")
            await self._ask(engine)

    def _answered(self, engine: Engine) -> None:
        engine.breaker.succeeded()
        engine.seen_at = self._now()
        came = not engine.up
        if came:
            engine.up = True
            self._tell(ev.EngineBack(engine=engine.id))
            log.info("engine %s answers", engine.id)
            if not engine.models:
                log.warning("engine %s lists no model, so it gets calls for any: %s", engine.id, NAME_MODELS)
        self._tell(_report(engine))
        if self._telemetry is not None:
            self._telemetry.gauge("engine_up", 1.0, engine=engine.id)

    def _count_failure(self, engine: Engine, reason: str) -> None:
        opened = engine.breaker.failed(self._now(), reason)
        if opened and engine.up:
            self._lost(engine, reason)

    def _lost(self, engine: Engine, reason: str) -> None:
        engine.up = False
        log.warning("engine %s is lost: %s", engine.id, reason)
        self._tell(ev.EngineLost(engine=engine.id, reason=reason[:200]))
        if self._telemetry is not None:
            self._telemetry.gauge("engine_up", 0.0, engine=engine.id)

    async def _pause(self, engine: Engine) -> None:
        urgent = self._urgent[engine.id]
        if engine.breaker.state is State.CLOSED:
            # an engine that is not up yet, or has just failed, is asked soon again
            shaky = not engine.up or engine.breaker.failures
            wait_s = min(0.5, self._settings.interval_s) if shaky else self._settings.interval_s
        else:
            urgent.clear()
            wait_s = max(engine.breaker.probe_in_s(self._now()), 0.01)
        try:
            async with asyncio.timeout(wait_s):
                await urgent.wait()
        except TimeoutError:
            return
        urgent.clear()

    async def _holdings(self, engine: Engine, adapter: ReportsHoldings) -> None:
        """What the engine says it holds of which program, as it changes."""
        while self._engines.get(engine.id) is engine:
            try:
                async for holding in adapter.kv_holdings():
                    program, name = ProgramId(holding.program), EngineId(engine.id)
                    if holding.tokens >= holding.tokens_known > 0:
                        self._tell(ev.KvStored(engine=name, program=program, tokens=holding.tokens))
                    else:
                        self._tell(ev.KvRemoved(engine=name, program=program, tokens_left=holding.tokens))
                return
            except AgentServeError as error:
                log.debug("KV events of %s: %s", engine.id, error)
            await asyncio.sleep(self._settings.interval_s)


def _report(engine: Engine) -> ev.EngineReported:
    caps, load = engine.capabilities, engine.load
    return ev.EngineReported(
        engine=engine.id,
        kv_tokens=engine.settings.kv_tokens or (caps.kv_tokens if caps is not None else None),
        seqs_max=caps.seqs_max if caps is not None else None,
        block_tokens=caps.block_tokens if caps is not None else None,
        models=engine.models,
        running=load.running if load is not None else None,
        waiting=load.waiting if load is not None else None,
        kv_used_share=load.kv_used_share if load is not None else None,
        preemptions=load.preemptions if load is not None else None,
        draining=engine.draining,
        pins_natively=caps.pin == "native" if caps is not None else None,
    )
