"""`agentserve up`: the gateway, by default with an embedded emulated engine and a SQLite file."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from agentserve import config, console
from agentserve.config import Settings
from agentserve.errors import AgentServeError, UsageError
from agentserve.live.files import raise_limit
from agentserve.live.interpreter import loop_factory, settle_allocator

HELP = "run the gateway, by default with an embedded emulated engine and a SQLite file"

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
    raise_limit()
    settle_allocator()
    with (
        contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError),
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        runner.run(serve(settings, args))
    return 0


class Early:
    """Signals that come while nothing serves yet: a stop ends the process, a reload waits until it can be done.

    Left to the system, SIGHUP would end the process too, and SIGTERM would not where it is a container's first one.
    """

    def __init__(self) -> None:
        self.over = self.reload = False
        self._serving = asyncio.current_task()
        with contextlib.suppress(ValueError, AttributeError):  # not the main thread, not a POSIX system
            signal.signal(signal.SIGTERM, self._stop)
            signal.signal(signal.SIGHUP, self._hang_up)

    def _stop(self, *_: Any) -> None:
        if not self.over and self._serving is not None:
            self.over = True  # told again, it goes on closing, which has a bound of its own
            self._serving.get_loop().call_soon_threadsafe(self._serving.cancel)

    def _hang_up(self, *_: Any) -> None:
        self.reload = True


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
    """Compose, serve and say where as soon as it listens, close."""
    early = Early()
    from agentserve.cli.gateway import composed
    from agentserve.cli.reload import Reload
    from agentserve.live.serve import server_for

    async with composed(settings) as made:
        server = server_for(made.gateway)
        reload = Reload(lambda: settings_of(args), made)
        with contextlib.suppress(NotImplementedError, AttributeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.start)

        def started() -> None:
            announce(made.settings, openly=made.open, keys=len(made.store.keys))
            if early.reload:
                reload.start()

        server.on_started = started
        try:
            await server.serve()
        except SystemExit as error:  # uvicorn's way to say that it cannot listen, or that we could not start
            if (why := made.gateway.not_started) is not None:
                raise why if isinstance(why, AgentServeError) else AgentServeError(f"{why}") from why
            where = f"{settings.gateway.host}:{settings.gateway.port}"
            raise UsageError(f"cannot listen on {where}", remedy="choose another --port") from error
        finally:
            early.over = True


def announce(settings: Settings, *, openly: bool, keys: int) -> None:
    """What a newcomer needs: where, the console, and a line to try."""
    host = settings.gateway.host if settings.gateway.host not in ("0.0.0.0", "::") else "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
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
