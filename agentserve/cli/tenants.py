"""`agentserve tenants`: who has used what."""

from __future__ import annotations

import argparse

from agentserve.cli.stored import add_store_arguments, ago, print_json, print_table, share, with_database
from agentserve.store import queries

HELP = "list tenants with their share and use"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_store_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    rows = with_database(args, queries.tenants)
    if args.json:
        print_json(rows)
        return 0
    if not rows:
        print("no tenants yet")
        return 0
    whole = sum(row["service"] or 0.0 for row in rows)
    columns = (">programs", ">steps", ">prompt", ">cached", ">output", ">share of service", "active")
    print_table(
        "",
        ("tenant", *columns),
        [
            (
                row["id"],
                row["programs"],
                row["steps"],
                row["prompt_tokens"],
                share(row["cached_tokens"], row["prompt_tokens"]),
                row["output_tokens"],
                share(row["service"], whole),
                ago(row["last_seen_at"]),
            )
            for row in rows
        ],
    )
    return 0
