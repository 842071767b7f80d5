"""`agentserve keys create|list|revoke`: who may call, read and administer."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from agentserve.cli.stored import add_store_arguments, clock, duration, print_json, print_table, with_database
from agentserve.errors import UsageError
from agentserve.store import keys
from agentserve.store.database import Database

HELP = "create, list and revoke API keys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; it is shown this once")
    create.add_argument("--tenant", default="default", help="whom it stands for (default: default)")
    create.add_argument(
        "--scope",
        action="append",
        choices=keys.SCOPES,
        help="what it may do: call engines, read the admin API, or everything; may stand again (default: call)",
    )
    create.add_argument("--name", default="", help="a note for you")
    create.add_argument("--expires", type=duration, metavar="IN", help="e.g. 12h or 90d; default never")
    add_store_arguments(create)
    every = actions.add_parser("list", help="all keys, never their secrets")
    every.add_argument("--tenant", help="of this tenant")
    add_store_arguments(every)
    revoke = actions.add_parser("revoke", help="end a key, within seconds")
    revoke.add_argument("key", metavar="KEY", help="its public id, or the whole key")
    add_store_arguments(revoke)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    return {"create": _create, "list": _list, "revoke": _revoke}[args.action](args)


def _create(args: argparse.Namespace) -> int:
    if len(args.name) > 200:
        raise UsageError("--name is too long", remedy="at most 200 characters")
    now = time.time()

    async def work(database: Database) -> keys.NewKey:
        return await keys.create(
            database,
            tenant=args.tenant,
            now=now,
            scopes=args.scope or ["call"],
            name=args.name,
            expires_at=now + args.expires if args.expires else None,
        )

    made = with_database(args, work, create=True)
    if args.json:
        print_json({"key": made.token, **_row(made.key, now)})
        return 0
    print(made.token)
    until = f", until {clock(made.key.expires_at)} UTC" if made.key.expires_at is not None else ""
    print(
        f"for tenant {made.key.tenant}, scope {' '.join(sorted(made.key.scopes))}{until}; "
        "it is not shown again, so keep it now",
        file=sys.stderr,
    )
    return 0


def _list(args: argparse.Namespace) -> int:
    async def work(database: Database) -> list[keys.StoredKey]:
        return await keys.listed(database, tenant=args.tenant)

    now = time.time()
    rows = [_row(key, now) for key in with_database(args, work)]
    if args.json:
        print_json(rows)
        return 0
    if not rows:
        print("no keys; `agentserve keys create` makes one")
        return 0
    columns = ("id", "tenant", "scopes", "state", "created", "expires", "name")
    print_table(
        "",
        columns,
        [
            (
                row["id"], row["tenant"], " ".join(row["scopes"]), row["state"], clock(row["created_at"]),
                clock(row["expires_at"]), row["name"],
            )
            for row in rows
        ],
    )  # fmt: skip
    return 0


def _revoke(args: argparse.Namespace) -> int:
    async def work(database: Database) -> keys.StoredKey:
        return await keys.revoke(database, args.key, now=time.time())

    key = with_database(args, work)
    if args.json:
        print_json(_row(key, time.time()))
    else:
        print(
            f"{key.key_id} of tenant {key.tenant} is revoked; gateways take note within {keys.REFRESH_S:g} s"
        )
    return 0


def _row(key: keys.StoredKey, now: float) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "name": key.name,
        "state": key.state(now),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }
