"""SIGHUP: the settings are read again, and what can change safely is taken over, all of it or nothing.

Rule: everything that may be wrong with the new settings is found before anything changes, and what runs on an engine
that stays where it is goes on. Engines that came by the admin API stay.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Sequence

from agentserve.cli.gateway import EMBEDDED, Composed, check_engines, with_engines, with_kinds
from agentserve.config import EngineSettings, Settings, TenantSettings
from agentserve.errors import AgentServeError, ConfigError

UNNAMED = re.compile(r"e\d+")  # what engines without an id are called
log = logging.getLogger("agentserve.gateway")


class Reload:
    """One at a time; told again meanwhile, it reads once more when it is through."""

    def __init__(self, read: Callable[[], Settings], made: Composed) -> None:
        self._read = read
        self._made = made
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The signal came."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._again:
            self._again = False
            try:
                fresh = await self._checked(with_engines(self._read()))
                await self._engines(fresh)
            except AgentServeError as error:
                log.error("the new settings are refused and the old ones stay in force: %s", error)
            else:
                self._take(fresh)
                log.info("settings reloaded")

    async def _checked(self, fresh: Settings) -> Settings:
        """The settings as they would be in force, if nothing is wrong with them."""
        before = self._made.settings.engines
        if fresh.engines[0].kind == EMBEDDED != before[0].kind and not fresh.engines[0].url:
            raise ConfigError("they name no engine any more", remedy="is the file whole?")
        fresh = dataclasses.replace(fresh, engines=tuple(with_old_names(fresh.engines, before)))
        check_engines(fresh.engines)
        fresh = await with_kinds(fresh)
        return dataclasses.replace(fresh, engines=tuple(self._as_known(engine) for engine in fresh.engines))

    def _as_known(self, engine: EngineSettings) -> EngineSettings:
        """One that does not say now what it is still is what it was."""
        live = self._made.gateway.engines.get(engine.id)
        if engine.kind == "auto" and live is not None and live.settings.url == engine.url:
            return dataclasses.replace(engine, kind=live.settings.kind)
        return engine

    async def _engines(self, fresh: Settings) -> None:
        engines = self._made.gateway.engines
        named = {e.id for e in fresh.engines}
        for gone in self._made.settings.engines:
            if gone.id not in named and engines.get(gone.id) is not None:
                await engines.remove(gone.id)
        for engine in fresh.engines:
            live = engines.get(engine.id)
            if live is None:
                await engines.add(engine)
            elif live.settings != engine:
                await engines.change(engine)

    def _take(self, fresh: Settings) -> None:
        made = self._made
        gone = {t.id for t in made.settings.tenants} - {t.id for t in fresh.tenants}
        for tenant in (*fresh.tenants, *(TenantSettings(id=name) for name in sorted(gone))):
            made.gateway.set_tenant(tenant)
        logging.getLogger().setLevel(fresh.gateway.log_level.upper())
        made.settings = dataclasses.replace(
            made.settings,
            engines=fresh.engines,
            tenants=fresh.tenants,
            gateway=dataclasses.replace(made.settings.gateway, log_level=fresh.gateway.log_level),
        )


def with_old_names(
    fresh: Sequence[EngineSettings], before: Sequence[EngineSettings]
) -> Iterator[EngineSettings]:
    """Engines that were never named keep what they are called, although others before them came or went."""
    old = {e.url: e.id for e in before if UNNAMED.fullmatch(e.id)}
    named = {e.id for e in fresh if not UNNAMED.fullmatch(e.id)}
    kept = {e.url: old[e.url] for e in fresh if e.url in old and UNNAMED.fullmatch(e.id)}
    taken = {*kept.values(), *named}
    for engine in fresh:
        name = engine.id
        if engine.url in kept and UNNAMED.fullmatch(name):
            name = kept.pop(engine.url)
        elif UNNAMED.fullmatch(name):
            while name in taken:
                name = f"e{int(name[1:]) + 1}"
            taken.add(name)
        yield engine if name == engine.id else dataclasses.replace(engine, id=name)
