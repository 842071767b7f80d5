"""`agentserve db upgrade|status`: create or migrate the database, and see how it is."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from agentserve.cli.stored import add_store_arguments, database_url, print_json, print_table
from agentserve.errors import UsageError
from agentserve.store import migrations, queries
from agentserve.store.database import Database

HELP = "create or migrate the database"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    upgrade = actions.add_parser("upgrade", help="bring the tables to this version")
    add_store_arguments(upgrade)
    status = actions.add_parser("status", help="its version, size and rows")
    add_store_arguments(status)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    return asyncio.run(_upgrade(args) if args.action == "upgrade" else _status(args))


async def _upgrade(args: argparse.Namespace) -> int:
    # a large table takes its time, and so may another upgrade that was first
    database = Database(database_url(args), patient=True)
    try:
        before, after = await migrations.upgrade(database)
    finally:
        await database.close()
    if args.json:
        print_json({"database": database.name, "before": before, "after": after})
    elif before == after:
        print(f"{database.name} is at revision {after}; nothing to do")
    else:
        print(f"{database.name} went from {before or 'nothing'} to revision {after}")
    return 0


async def _status(args: argparse.Namespace) -> int:
    database = Database(database_url(args))
    try:
        if database.absent:
            raise UsageError(
                f"there is no database {database.url.database}", remedy="`agentserve db upgrade` makes it"
            )
        found = await migrations.current(database)
        migrations.refuse_newer(database, found)
        told: dict[str, Any] = {
            "database": database.name,
            "revision": found,
            "newest": migrations.head(),
            "bytes": await database.size_bytes(),
            "rows": await queries.counts(database) if found == migrations.head() else {},
        }
    finally:
        await database.close()
    if args.json:
        print_json(told)
        return 0
    state = "up to date" if found == told["newest"] else f"not {told['newest']}: run `agentserve db upgrade`"
    print(f"{told['database']}: revision {found or 'none'}, {state}; {told['bytes'] / 1e6:.1f} MB")
    if told["rows"]:
        print_table("", ("table", ">rows"), list(told["rows"].items()))
    return 0
