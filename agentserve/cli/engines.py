"""`agentserve engines`: the engines of the settings as they answer now, or a running gateway's own view of its.

Rule: without `--gateway` every configured engine is asked directly; with it, only the gateway is.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import httpx

from agentserve import config
from agentserve.cli.address import base_url, bearer
from agentserve.cli.doctor import Finding, as_table, examine_all
from agentserve.cli.stored import print_json, print_table
from agentserve.errors import AgentServeError, EngineBroke, EngineUnreachable

HELP = "list engines with what they hold and how they answer"

GATEWAY_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--config", metavar="FILE", help="settings file (default: agentserve.toml, if there)")
    parser.add_argument("--gateway", metavar="URL", help="ask this running gateway instead of the engines")
    parser.add_argument("--api-key", metavar="KEY", help="admin key of that gateway")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Carry out the verb. Exit status 1 when an engine is not usable."""
    if args.gateway is not None:
        rows = asyncio.run(of_gateway(args.gateway, args.api_key))
        good = all(row.get("state") == "up" for row in rows)
    else:
        engines = config.load(file=args.config).engines
        if not engines and not args.json:
            print("no engines in the settings: `agentserve up` runs an embedded emulated one")
            return 0
        findings = asyncio.run(examine_all(engines))
        rows = [row_of(e.id, f) for e, f in zip(engines, findings, strict=True)]
        good = all(finding.usable for finding in findings)
    if args.json:
        print_json(rows)
    else:
        show(rows)
    return 0 if good else 1


async def of_gateway(url: str, key: str | None) -> list[dict[str, Any]]:
    """The gateway's own view."""
    asked = f"{base_url(url, '--gateway')}/admin/v1/engines"
    headers = bearer(key, "--api-key")
    try:
        async with httpx.AsyncClient(timeout=GATEWAY_TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(asked, headers=headers)
    except httpx.HTTPError as exc:
        raise EngineUnreachable(
            f"no gateway answers at {url} ({str(exc) or type(exc).__name__})",
            remedy="is it running, and is this its address?",
        ) from exc
    if answer.status_code in (401, 403):
        raise AgentServeError(f"the gateway at {url} refuses", remedy="give an admin key with --api-key")
    try:
        rows = answer.json()["data"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise EngineBroke(f"what answers at {url} is no gateway (HTTP {answer.status_code})") from exc
    return list(rows)


def row_of(engine: str, finding: Finding) -> dict[str, Any]:
    """A probed engine in the columns of a gateway's."""
    table = as_table(finding)
    load = table.pop("load") or {}
    state = "up" if finding.usable else "down"
    return {"id": engine, "state": state, **table, **{k: load.get(k) for k in ("running", "waiting")}}


def show(rows: list[dict[str, Any]]) -> None:
    """For people."""
    print_table(
        "",
        ("engine", "kind", "version", "state", "models", ">KV tokens", ">running", ">waiting", "trouble"),
        [
            (
                row["id"],
                row["kind"],
                row.get("version") or "-",
                row["state"],
                ", ".join(row.get("models") or ()) or "-",
                f"{row['kv_tokens']:,}" if row.get("kv_tokens") else "-",
                _figure(row.get("running")),
                _figure(row.get("waiting")),
                row.get("trouble") or "",
            )
            for row in rows
        ],
    )


def _figure(value: Any) -> str:
    return "-" if value is None else str(value)
