"""Recorded traffic as workloads: agent programs, Mooncake and kv-cache-tester traces, Azure and BurstGPT CSV.

Rule: the format is told from the first line, so that a user names a file and nothing else. A module for each format;
what they share is in `reading`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agentserve.errors import UsageError
from agentserve.sim.importers.agent_programs import agent_programs
from agentserve.sim.importers.kv_cache_tester import kv_cache_tester
from agentserve.sim.importers.mooncake import mooncake
from agentserve.sim.importers.one_shots import clock, one_shots
from agentserve.sim.importers.reading import Reader
from agentserve.sim.programs import ProgramPlan, Workload

__all__ = ["Import", "read"]

_IMPORTERS: dict[str, Callable[[Reader], Iterable[ProgramPlan]]] = {
    "agent_programs": agent_programs,
    "mooncake": mooncake,
    "kv-cache-tester": kv_cache_tester,
    "azure": lambda r: one_shots(r, "contexttokens", "generatedtokens", clock),
    "burstgpt": lambda r: one_shots(r, "request tokens", "response tokens", float),
}


@dataclass(slots=True)
class Import:
    """What came of a file."""

    workload: Workload
    format: str
    lines: int = 0
    bad: int = 0
    problems: list[str] = field(default_factory=list)


def read(path: str | Path, *, strict: bool = False, limit: int | None = None) -> Import:
    """The programs of a file, at most `limit` root programs."""
    reader = Reader(Path(path), strict=strict)
    kind = _detect(reader)
    reader.lines = 0
    plans = list(_IMPORTERS[kind](reader))
    if not plans:
        why = f" ({reader.problems[0]})" if reader.problems else ""
        raise UsageError(
            f"{path} holds no usable program{why}", remedy="check that it is a trace of a known format"
        )
    plans = _from_nought(_limited(plans, limit))
    workload = Workload(name=Path(path).name, programs=plans, shared_tokens=_shared_tokens(plans))
    return Import(workload, kind, reader.lines, reader.bad, reader.problems)


def _detect(reader: Reader) -> str:
    first = next(reader.text(), "").strip()
    if first.startswith("{"):
        try:
            keys = set(json.loads(first))
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{reader.path}: line 1 is not JSON: {error}", remedy="give a JSONL or CSV trace"
            ) from error
        if "hash_ids" in keys:
            return "mooncake"
        if "requests" in keys:
            return "kv-cache-tester"
        if "schema" in keys or "turns" in keys:
            return "agent_programs"
    head = {h.strip().lower() for h in first.split(",")}
    if {"timestamp", "contexttokens", "generatedtokens"} <= head:
        return "azure"
    if {"timestamp", "request tokens", "response tokens"} <= head:
        return "burstgpt"
    raise UsageError(
        f"{reader.path} is in no known format",
        remedy="known are agentserve export, agent_programs, Mooncake, kv-cache-tester, Azure and BurstGPT",
    )


def _limited(plans: list[ProgramPlan], limit: int | None) -> list[ProgramPlan]:
    """The first `limit` roots with their families, indices mended."""
    if limit is None:
        return plans
    keep: set[int] = set()
    roots = 0
    for index, plan in enumerate(plans):
        if plan.parent is None:
            roots += 1
            if roots > limit:
                continue
            keep.add(index)
        elif plan.parent in keep:
            keep.add(index)
    place = {old: new for new, old in enumerate(sorted(keep))}
    out = []
    for old in sorted(keep):
        plan = plans[old]
        steps = tuple(
            dataclasses.replace(s, children=tuple(place[c] for c in s.children if c in place))
            for s in plan.steps
        )
        parent = place[plan.parent] if plan.parent is not None else None
        out.append(dataclasses.replace(plan, steps=steps, parent=parent))
    return out


def _from_nought(plans: list[ProgramPlan]) -> list[ProgramPlan]:
    """Arrivals counted from the first; a file's clock may be the world's."""
    first = min((p.arrives_s for p in plans if p.arrives_s is not None), default=0.0)
    if not first:
        return plans
    return [
        p if p.arrives_s is None else dataclasses.replace(p, arrives_s=p.arrives_s - first) for p in plans
    ]


def _shared_tokens(plans: Iterable[ProgramPlan]) -> int:
    shared: dict[int, int] = {}
    for plan in plans:
        for run in plan.shared:
            shared[run.key] = run.tokens
    return sum(shared.values())
