"""What explains the records: forecasts of tools and programs, learned step graphs, who is owed what, what pins gave.

Rule: reads only, and computes only when it is asked; what the scheduler in force does not know is left out, so that a
policy of the literature or a simpler forecaster shows less and breaks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentserve.core.board import Board
from agentserve.core.direct import Direct
from agentserve.core.events import PendingTool
from agentserve.core.ids import ProgramId, TenantId
from agentserve.core.learned import Learned
from agentserve.core.policies.policy import Policy
from agentserve.core.policies.working_set import WorkingSet
from agentserve.core.workflow import LearnedGraph, StepGraphs, WorkflowGraph, render_svg
from agentserve.errors import NotFound
from agentserve.live.foretold import horizon_s, quantile, steps_left
from agentserve.live.holdings import Pins
from agentserve.live.workflows import Workflows

# Where a survival curve is read: from a twentieth of a second to ten minutes, evenly in logarithms.
CURVE_S = tuple(round(0.05 * 12_000 ** (i / 28), 3) for i in range(29))
QUANTILES = (0.5, 0.9, 0.99)


def tools(board: Board, seen: Iterable[tuple[tuple[str, str], int]]) -> list[dict[str, Any]]:
    """Of each tool that programs asked for lately, when one that calls it is back."""
    foresight = board.foresight
    if not isinstance(foresight, Learned):
        return []
    rows = []
    for (tenant, name), calls in seen:
        curve = foresight.returns.predict(tenant=tenant, program=None, calls=(PendingTool(id="", name=name),))
        rows.append(
            {
                "tenant": tenant,
                "tool": name,
                "calls": calls,
                **{f"p{int(q * 100)}_s": quantile(curve, q) for q in QUANTILES},
                "horizon_s": horizon_s(curve),
                "survival": [[t, round(curve.survival(t), 4)] for t in CURVE_S],
            }
        )
    return rows


def outlook(board: Board, pins: Pins, program_id: str, now: float) -> dict[str, Any]:
    """What is forecast of one live program: how many steps are left, and when its gap ends."""
    program = board.programs.get(ProgramId(program_id))
    if program is None:
        return {}
    left = steps_left(program)
    told: dict[str, Any] = {} if left is None else {"steps_left": round(left, 1)}
    gap = board.gap(program) if program.idle else None
    if gap is not None and program.gap_started_at is not None:
        elapsed = now - program.gap_started_at
        told["gap_s"] = round(elapsed, 3)
        told["gap_p50_s"] = quantile(gap, 0.5, elapsed)
        told["gap_p90_s"] = quantile(gap, 0.9, elapsed)
        told["gap_horizon_s"] = horizon_s(gap)
        told["still_away_share"] = round(gap.survival(elapsed), 4)
    pin = pins.of(program, now)
    if pin is not None:
        told["pinned_for_s"] = round(pin.until - now, 3)
    return told


def shares(board: Board, policy: Policy, now: float) -> dict[str, Any]:
    """Each tenant's weight and service, what it holds, and the largest gap there ever was between those that waited."""
    rows: dict[str, dict[str, Any]] = {}
    for program in board.programs.values():
        row = rows.setdefault(program.tenant, {"programs": 0, "steps_open": 0, "context_tokens": 0})
        row["programs"] += 1
        row["steps_open"] += len(program.open_steps)
        row["context_tokens"] += program.context_tokens
    services: dict[TenantId, float] = {}
    gap: float | None = None
    if isinstance(policy, WorkingSet):
        services, gap = policy.accounts.services(now), policy.accounts.gap_max
    total = sum(services.values())
    data = [
        {
            "tenant": tenant,
            "weight": board.share(TenantId(tenant)).weight,
            "service_token_s": round(services.get(TenantId(tenant), 0.0), 3),
            "service_share": round(services.get(TenantId(tenant), 0.0) / total, 4) if total else 0.0,
            **rows.get(tenant, {"programs": 0, "steps_open": 0, "context_tokens": 0}),
        }
        for tenant in sorted({*rows, *services})
    ]
    return {"data": data, "gap_max_token_s": gap}


def balance(policy: Policy) -> dict[str, float]:
    """What keeping KV through gaps gave and cost so far, in seconds of the engines' time; empty if it is not known."""
    return {name: round(value, 3) for name, value in policy.figures().items() if name.startswith("pins_")}


def against_direct(direct: Direct) -> dict[str, float]:
    """What returning steps found cached, beside what they would at most have found going direct (`core.direct`)."""
    over = direct.contexts_over_kv()
    return {**direct.figures(), **({} if over is None else {"contexts_over_kv": round(over, 4)})}


def graphs(learned: StepGraphs | None, declared: Workflows) -> list[dict[str, Any]]:
    """Every workflow of which a graph is known."""
    rows = [
        {"tenant": one.tenant, "name": one.name, "kind": "declared", "nodes": len(one.graph.nodes)}
        for one in declared.of(None)
    ]
    for tenant, name in learned.workflows() if learned is not None else ():
        found = learned.graph(tenant, name) if learned is not None else None
        if found is not None:
            rows.append({"tenant": tenant, "name": name, "kind": "learned", "nodes": len(found.nodes())})
    return rows


def drawing(learned: StepGraphs | None, declared: Workflows, tenant: str, name: str) -> str:
    """One workflow's graph as SVG: as learned, else as declared."""
    graph: LearnedGraph | WorkflowGraph | None = learned.graph(tenant, name) if learned is not None else None
    if graph is None:
        known = declared.get(tenant, name)
        graph = None if known is None else known.graph
    if graph is None:
        raise NotFound(
            f"no graph of a workflow {name!r} is known",
            remedy="declare one, or let a few of its programs run",
        )
    return render_svg(graph)
