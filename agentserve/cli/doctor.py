"""`agentserve doctor`: what an engine is, what agentserve can do with it and how, and what would unlock more.

Rule: it reports what the engine itself said or refused, never what its kind usually does. Exit status: 0 all
usable, 1 an engine is not usable, 2 the command was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from importlib.metadata import entry_points
from typing import Any

from agentserve import config
from agentserve.cli.gateway import DETECTORS, make_adapter
from agentserve.cli.stored import legible, print_json
from agentserve.config import EngineSettings
from agentserve.errors import AgentServeError, ConfigError
from agentserve.ports import Capabilities, EngineAdapter, EngineLoad, EngineOptions

HELP = "what an engine is and what agentserve can do with it"

PROBE_TIMEOUT_S = 30.0
NO_MODEL = (
    "it lists no model: name one (--model, or models in its settings), or does it want a key (--api-key)?"
)
ORDER = (
    "priority",
    "pin",
    "unpin",
    "warm",
    "residency",
    "load",
    "kv_capacity",
    "tokenise",
    "abort",
    "session",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One engine examined."""

    url: str
    kind: str
    evidence: str = ""
    capabilities: Capabilities | None = None
    load: EngineLoad | None = None
    trouble: str = ""

    @property
    def usable(self) -> bool:
        """Can it serve a step? It answers, and it has a model or takes any."""
        return self.capabilities is not None and not self.trouble


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("url", nargs="*", help="engines to examine (default: those of the settings)")
    parser.add_argument("--config", metavar="FILE", help="settings file (default: agentserve.toml, if there)")
    parser.add_argument("--kind", default="auto", help="what it is, where it does not say (default: ask it)")
    parser.add_argument("--api-key", metavar="KEY", help="key for the engines named here")
    parser.add_argument(
        "--model", action="append", default=[], help="its model, where it lists none (repeatable)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    findings = asyncio.run(examine_all(engines_of(args)))
    if args.json:
        print_json([as_table(finding) for finding in findings])
    else:
        print("\n\n".join("\n".join(map(legible, render(f).splitlines())) for f in findings))
    return 0 if all(finding.usable for finding in findings) else 1


def engines_of(args: argparse.Namespace) -> tuple[EngineSettings, ...]:
    """Those named on the command line, else those of the settings."""
    if args.url:
        return tuple(
            EngineSettings(
                url=url, id=f"e{i}", kind=args.kind, api_key=args.api_key, models=tuple(args.model)
            )
            for i, url in enumerate(args.url, start=1)
        )
    found = config.load(file=args.config).engines
    if not found:
        raise ConfigError(
            "there is no engine to examine", remedy="name its address, or [[engines]] in the settings"
        )
    return found


async def examine_all(engines: tuple[EngineSettings, ...]) -> list[Finding]:
    """All at once."""
    return list(await asyncio.gather(*(examine(engine) for engine in engines)))


async def examine(engine: EngineSettings) -> Finding:
    """Ask one engine what it is and what it can do."""
    kind, evidence = engine.kind, ""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            if kind == "auto":
                kind, evidence = await detected(engine)
            adapter = make_adapter(options_of(dataclasses.replace(engine, kind=kind)))
            return await _probe(engine.url, kind, evidence, adapter)
    except TimeoutError:
        return Finding(url=engine.url, kind=kind, trouble=f"no answer within {PROBE_TIMEOUT_S:g} s")
    except ConfigError:
        raise
    except AgentServeError as error:
        return Finding(url=engine.url, kind=kind, evidence=evidence, trouble=str(error))


def options_of(engine: EngineSettings) -> EngineOptions:
    """What an adapter is built from."""
    names = [f.name for f in dataclasses.fields(EngineOptions)]
    return EngineOptions(**{name: getattr(engine, name) for name in names})


async def _probe(url: str, kind: str, evidence: str, adapter: EngineAdapter) -> Finding:
    try:
        await adapter.start()
        capabilities = await adapter.probe()
        load = await adapter.load()
    finally:
        await adapter.stop()
    trouble = "" if capabilities.models else NO_MODEL
    return Finding(
        url=url, kind=kind, evidence=evidence, capabilities=capabilities, load=load, trouble=trouble
    )


async def detected(engine: EngineSettings) -> tuple[str, str]:
    """Its kind, and by what it was recognised."""
    trouble: AgentServeError = ConfigError("no detector of engines is installed", remedy="name its --kind")
    for point in entry_points(group=DETECTORS):
        try:
            seen = await point.load()(engine.url, api_key=engine.api_key)
            return str(seen.kind), str(seen.recognised.evidence)
        except AgentServeError as error:
            trouble = error
    raise trouble


def as_table(finding: Finding) -> dict[str, Any]:
    """For programs."""
    caps = finding.capabilities
    return {
        "url": finding.url,
        "kind": finding.kind,
        "usable": finding.usable,
        "evidence": finding.evidence,
        "trouble": finding.trouble,
        "version": caps.version if caps else "",
        "models": list(caps.models) if caps else [],
        "protocols": sorted(caps.protocols) if caps else [],
        "kv_tokens": caps.kv_tokens if caps else None,
        "block_tokens": caps.block_tokens if caps else None,
        "context_tokens_max": caps.context_tokens_max if caps else None,
        "seqs_max": caps.seqs_max if caps else None,
        "reports_cached_tokens": caps.reports_cached_tokens if caps else None,
        "mechanisms": dict(caps.mechanisms) if caps else {},
        "unlocks": [{"flag": flag, "gives": gives} for flag, gives in caps.unlocks] if caps else [],
        "refused": list(caps.refused) if caps else [],
        "load": dataclasses.asdict(finding.load) if finding.load else None,
    }


def render(finding: Finding) -> str:
    """For people."""
    caps = finding.capabilities
    if caps is None:
        return f"{finding.url}\n  not usable: {finding.trouble}"
    title = f"{finding.url}  {finding.kind} {caps.version}".rstrip()
    lines = [title, f"  {'usable' if finding.usable else 'not usable: ' + finding.trouble}"]
    if finding.evidence:
        lines.append(f"  recognised by: {finding.evidence}")
    lines += [f"  {name}: {value}" for name, value in [*facts(caps), *found_cached(finding.load)] if value]
    lines.append("  what agentserve does with it:")
    means = dict(caps.mechanisms)
    names = [*(n for n in ORDER if n in means), *(n for n in means if n not in ORDER)]
    width = max((len(n) for n in names), default=0)
    lines += [f"    {name:<{width}}  {means[name]}" for name in names]
    if caps.unlocks:
        lines.append("  what would unlock more:")
        lines += [f"    {flag}\n      {gives}" for flag, gives in caps.unlocks]
    if caps.refused:
        lines.append("  refused by the engine:")
        lines += [f"    {text}" for text in caps.refused]
    return "\n".join(lines)


def facts(caps: Capabilities) -> list[tuple[str, str]]:
    """Figures, where known."""
    kv = f"{caps.kv_tokens:,} tokens" if caps.kv_tokens else "unknown: set kv_tokens"
    if caps.kv_tokens and caps.block_tokens and caps.block_tokens > 1:
        kv += f" in blocks of {caps.block_tokens}"
    return [
        ("models", ", ".join(caps.models)),
        ("protocols", ", ".join(sorted(caps.protocols))),
        ("KV", kv),
        ("longest context", f"{caps.context_tokens_max:,} tokens" if caps.context_tokens_max else ""),
        ("requests at once", f"{caps.seqs_max:,}" if caps.seqs_max else ""),
        ("says what was cached", "yes" if caps.reports_cached_tokens else "no"),
    ]


def found_cached(load: EngineLoad | None) -> list[tuple[str, str]]:
    """How its prefix cache has done since it started: a low share under agents is what seats mend."""
    if load is None or not load.prefix_queries_tokens or load.prefix_hits_tokens is None:
        return []
    asked, found = load.prefix_queries_tokens, load.prefix_hits_tokens
    return [("found cached since its start", f"{found / asked:.0%} of {asked:,} prompt tokens")]
