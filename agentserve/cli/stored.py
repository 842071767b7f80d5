"""What the verbs that read the store share: which database, errors as one line, and tables.

Rule: a verb that only reads does not create a database.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from agentserve import config
from agentserve.errors import UsageError
from agentserve.store import migrations
from agentserve.store.database import Database

PIPED_WIDTH = 160

T = TypeVar("T")


def add_store_arguments(
    parser: argparse.ArgumentParser, *, json: bool = True, repeated: bool = False
) -> None:
    """Which database, and how to print. `repeated`: an outer parser has them too, and has the defaults."""
    none, no = (argparse.SUPPRESS, argparse.SUPPRESS) if repeated else (None, False)
    parser.add_argument(
        "--config", metavar="FILE", default=none, help="settings file (default: agentserve.toml, if there)"
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        default=none,
        help="database, e.g. sqlite:///agentserve.db; wins over the settings",
    )
    if json:
        parser.add_argument("--json", action="store_true", default=no, help="print JSON")


def database_url(args: argparse.Namespace) -> str:
    """The database that is meant."""
    flags = [("store.url", args.store, "--store")] if args.store else []
    return config.load(file=args.config, flags=flags).store.url


def with_database(
    args: argparse.Namespace, work: Callable[[Database], Awaitable[T]], *, create: bool = False
) -> T:
    """Run `work` on the database. `create`: an embedded one that is not there is made."""

    async def run() -> T:
        database = Database(database_url(args))
        try:
            if not create and (
                database.absent or (database.embedded and await migrations.current(database) is None)
            ):
                raise UsageError(
                    f"there is no database of ours in {database.url.database}",
                    remedy="start the gateway once, or name another one with --store",
                )
            await migrations.ready(database)
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def print_json(value: Any) -> None:
    """For programs. Bytes are left out: they mean something to their owner only."""
    plain = msgspec.to_builtins(_without_bytes(value))
    print(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())


def _without_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_bytes(v) for k, v in value.items() if not isinstance(v, bytes)}
    if isinstance(value, list):
        return [_without_bytes(v) for v in value]
    return value


def legible(said: str) -> str:
    """What clients and engines named may hold control characters: they do not reach the terminal."""
    return "".join(c if c.isprintable() else "�" for c in said)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """For people. Columns that begin with `>` are numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def plain(said: object) -> Text:
        return Text(legible(str(said)))  # and no markup

    heading = Text("\n") + plain(title.removeprefix("\n")) if title.startswith("\n") else plain(title)
    table = Table(title=heading if title else None, title_justify="left", box=None, pad_edge=False)
    table.header_style = "bold"
    for column in columns:
        number = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)
    console.print(table)


def clock(at: float | None) -> str:
    """A time, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S") if at is not None else "-"


def ago(at: float | None) -> str:
    """How long ago."""
    return "-" if at is None else f"{seconds(max(time.time() - at, 0.0))} ago"


def seconds(value: float | None) -> str:
    """A duration in about three digits."""
    if value is None:
        return "-"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    if value < 172_800:
        return f"{value / 3600:.0f} h"
    return f"{value / 86_400:.0f} d"


def share(part: float | None, whole: float | None) -> str:
    """A percentage."""
    return "-" if not whole or part is None else f"{100 * part / whole:.0f}%"


def duration(text: str) -> float:
    """Seconds from `90s`, `30m`, `12h` or `7d`; for argparse."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
    try:
        value = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 30m, 12h or 7d") from None
    if not 0 < value < 1e11:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration above zero")
    return value
