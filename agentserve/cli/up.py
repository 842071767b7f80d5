"""`agentserve up`: the gateway, by default with an embedded emulated engine and a SQLite file."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from agentserve import config, console
from agentserve.config import Settings, TenantSettings
from agentserve.errors import AgentServeError, UsageError
from agentserve.live.interpreter import loop_factory

HELP = "run the gateway, by default with an embedded emulated engine and a SQLite file"
log = logging.getLogger("agentserve.gateway")

# flag, settings key, help
FLAGS = (
    ("--host", "gateway.host", "address to listen on (default 127.0.0.1)"),
    ("--port", "gateway.port", "port (default 8400)"),
    ("--workers", "gateway.workers", "processes that keep the clients' connections (default 1: all in one)"),
    ("--policy", "scheduler.policy", "who decides (default agentserve)"),
    ("--store", "store.url", "database (default a SQLite file here)"),
    ("--log-level", "gateway.log_level", "debug, info, warning or error"),
    ("--traces", "telemetry.traces", "off, console or otlp"),
    ("--profile", "emulated.profile", "model and accelerator of the embedded engine"),
    ("--time-scale", "emulated.time_scale", "how much faster than real the embedded engine is"),
    ("--kv-tokens", "emulated.kv_tokens", "KV tokens of the embedded engine"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--config", metavar="FILE", help="settings file (default: agentserve.toml, if there)")
    parser.add_argument(
        "--engine", action="append", default=[], metavar="URL", help="an engine; may stand again"
    )
    for flag, _, text in FLAGS:
        parser.add_argument(flag, metavar="VALUE", help=text)
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any setting; may stand again"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the effective settings and where each is from"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    settings = settings_of(args)
    if args.print_config:
        print(config.render(settings))
        return 0
    level = getattr(logging, settings.gateway.log_level.upper())
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("httpx", "alembic", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(settings, args))
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """From file, environment and the flags given."""
    flags: list[tuple[str, Any, str]] = []
    for flag, key, _ in FLAGS:
        value = getattr(args, flag.removeprefix("--").replace("-", "_"))
        if value is not None:
            flags.append((key, value, flag))
    for pair in args.set:
        key, sep, value = pair.partition("=")
        if not sep or "." not in key:
            raise UsageError(f"--set {pair} is not SECTION.KEY=VALUE", remedy="write --set gateway.port=8401")
        flags.append((key, value, "--set"))
    return config.load(file=args.config, flags=flags, engine_urls=args.engine)


async def serve(settings: Settings, args: argparse.Namespace) -> None:
    """Compose, say where it is, serve, close."""
    from agentserve.cli.gateway import composed
    from agentserve.live.serve import server_for

    async with composed(settings) as made:
        server = server_for(made.gateway)
        reload = Reload(args, made)
        with contextlib.suppress(NotImplementedError, AttributeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.start)
        announce(made.settings, openly=made.open, keys=len(made.store.keys))
        try:
            await server.serve()
        except SystemExit as error:  # uvicorn's way to say that it cannot listen
            where = f"{settings.gateway.host}:{settings.gateway.port}"
            raise UsageError(f"cannot listen on {where}", remedy="choose another --port") from error


def announce(settings: Settings, *, openly: bool, keys: int) -> None:
    """What a newcomer needs: where, the console, and a line to try."""
    host = settings.gateway.host if settings.gateway.host not in ("0.0.0.0", "::") else "127.0.0.1"
    base = f"http://{host}:{settings.gateway.port}"
    engines = ", ".join(f"{e.id} ({e.kind})" for e in settings.engines)
    model = "emulated" if settings.engines[0].kind == "emulated" else "MODEL"
    lines = [
        f"agentserve is up in front of {engines}",
        f"  base URL  {base}/v1",
        *([f"  console   {base}/console"] if console_here() else []),
        "  try       "
        f"curl -N {base}/v1/chat/completions -H 'content-type: application/json' "
        f"""-d '{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"hello"}}]}}'""",
    ]
    if openly:
        lines.append(
            "  open      no API key is asked for; create one with `agentserve keys create`, then restart"
        )
    elif not keys:
        lines.append(
            "  closed    there is no API key yet, so every call is refused; `agentserve keys create` makes one"
        )
    print("\n".join(lines), flush=True)


def console_here() -> bool:
    """Whether the web page was shipped with this build."""
    return (Path(console.__file__).parent / "static").is_dir()


class Reload:
    """SIGHUP: read the settings again and take over what can change safely, all of it or nothing."""

    def __init__(self, args: argparse.Namespace, made: Any) -> None:
        self._args = args
        self._made = made
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """One reload at a time."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        from agentserve.cli.gateway import with_engines, with_kinds

        try:
            fresh = await with_kinds(with_engines(settings_of(self._args)))
            await self._engines(fresh)
        except AgentServeError as error:
            log.error("the new settings are refused and the old ones stay in force: %s", error)
            return
        self._take(fresh)
        log.info("settings reloaded")

    async def _engines(self, fresh: Settings) -> None:
        """New engines are made before anything changes, so that a wrong one changes nothing."""
        from agentserve.cli.gateway import make_adapter
        from agentserve.ports import EngineOptions

        engines = self._made.gateway.engines
        # as they are now: one that was away at the start has been recognised since
        before = {
            e.id: live.settings if (live := engines.get(e.id)) is not None else e
            for e in self._made.settings.engines
        }
        after = {e.id: e for e in fresh.engines}
        added = [e for e in fresh.engines if before.get(e.id) != e]
        for engine in added:
            make_adapter(
                EngineOptions(
                    id=engine.id,
                    kind=engine.kind,
                    url=engine.url,
                    models=engine.models,
                    kv_tokens=engine.kv_tokens,
                    extra=engine.extra,
                )
            )
        for name in [n for n, e in before.items() if after.get(n) != e]:
            if engines.get(name) is not None:
                await engines.remove(name)
        for engine in added:
            await engines.add(engine)

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
