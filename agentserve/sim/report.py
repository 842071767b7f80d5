"""What a run says: figures per run, and over seeds with confidence intervals.

Rule: every figure is defined here, once, in words beside its formula.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentserve.sim.programs import ProgramPlan, Workload
from agentserve.sim.traces import Result, StepTrace

Figures = dict[str, Any]
# Two-sided 95% points of Student's t by degrees of freedom; beyond the table the normal's.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between order statistics; 0 when there are none. `values` must be sorted."""
    if not values:
        return 0.0
    at = q * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


def summarise(
    workload: Workload,
    result: Result,
    alone_s: Callable[[ProgramPlan], float],
    policy: Mapping[str, float],
    *,
    slo_ttft_s: float | None = None,
    slo_slowdown: float | None = None,
) -> Figures:
    """The figures of one run."""
    plans = workload.programs
    roots = [t for t in result.programs if plans[t.index].parent is None]
    jct = sorted(t.ended_at - t.started_at for t in roots)
    # slowdown: completion time over the time the program would take alone on an idle engine
    slow = sorted((t.ended_at - t.started_at) / alone_s(plans[t.index]) for t in roots)
    good = [s for s in result.steps if s.ok]
    ttft = sorted(s.first_at - s.sent_at for s in good)
    queue = sorted(s.dispatched_at - s.sent_at for s in good)
    prompt = sum(s.prompt for s in good)
    cached = sum(s.cached for s in good)
    # re-prefilled: tokens that the program had sent before and that were computed again all the same
    again = sum(max(s.prompt - s.fresh - s.cached, 0) for s in good)
    span = max(result.ended_at, 1e-9)
    tenants = _tenants(workload, result, alone_s)
    met = [t for t in roots if _met(plans[t.index], t.ended_at - t.started_at)]
    with_deadline = [t for t in roots if plans[t.index].deadline_s is not None]
    return {
        "programs": len(roots),
        "steps": len(good),
        "makespan_s": span,
        "jct_mean_s": statistics.fmean(jct) if jct else 0.0,
        "jct_p50_s": quantile(jct, 0.5),
        "jct_p95_s": quantile(jct, 0.95),
        "jct_p99_s": quantile(jct, 0.99),
        "slowdown_mean": statistics.fmean(slow) if slow else 0.0,
        "slowdown_p95": quantile(slow, 0.95),
        "ttft_mean_s": statistics.fmean(ttft) if ttft else 0.0,
        "ttft_p50_s": quantile(ttft, 0.5),
        "ttft_p99_s": quantile(ttft, 0.99),
        "queue_mean_s": statistics.fmean(queue) if queue else 0.0,
        "queue_p99_s": quantile(queue, 0.99),
        "steps_per_min": 60.0 * len(good) / span,
        "prompt_tokens": prompt,
        "cached_share": cached / prompt if prompt else 0.0,
        "reprefilled_tokens": again,
        # attainment of the objectives that were asked for: of steps by time to first token, of programs by slowdown
        "slo_ttft_met": attained(ttft, slo_ttft_s),
        "slo_slowdown_met": attained(slow, slo_slowdown),
        "deadlines_met": len(met) / len(with_deadline) if with_deadline else None,
        "rejected": result.rejected,
        "failed": result.failed,
        "unservable": result.unservable,
        # whose end the run did not reach, because it was cut off
        "unfinished": len(plans) - len(result.programs),
        "warms": result.warms,
        "warm_hits": result.warm_hits,
        # what warms cost, in prompt tokens computed for them, and what they kept from being evicted
        "warm_restored_tokens": result.warm_restored_tokens,
        "warm_refreshed_tokens": result.warm_refreshed_tokens,
        # of the fleet's KV over time: held by running steps; kept and hit again later; kept and never hit again
        **_kv(result, good),
        "service_gap_tokens": service_gap(workload, result),
        "jain_slowdown": jain([t["slowdown_mean"] for t in tenants.values()]),
        "tenants": tenants,
        # what keeping KV through gaps spared and cost, in seconds of the engines' time
        **{k: v for k, v in policy.items() if k in ("pins_saved_s", "pins_cost_s", "pins_lost_s")},
        "policy": {k: round(v, 6) for k, v in policy.items()},
    }


def attained(values: Sequence[float], objective: float | None) -> float | None:
    """The share of values within the objective; None where there is none, or nothing to judge."""
    if objective is None or not values:
        return None
    return sum(value <= objective for value in values) / len(values)


def _kv(result: Result, steps: Sequence[StepTrace]) -> Figures:
    """Token-seconds of KV by what they were for, as shares of all that the fleet offered."""
    if not result.kv_capacity_token_s:
        return {}
    # what a step found cached had been kept since the program's step before it
    useful = 0.0
    ended: dict[int, float] = {}
    for step in steps:
        before = ended.get(step.program)
        if before is not None:
            useful += min(step.cached, step.prompt - step.fresh) * max(step.dispatched_at - before, 0.0)
        ended[step.program] = step.ended_at
    whole = result.kv_capacity_token_s
    idle = result.kv_idle_token_s
    return {
        "kv_running_share": result.kv_running_token_s / whole,
        "kv_kept_share": min(useful, idle) / whole,
        "kv_waste_share": max(idle - useful, 0.0) / whole,
    }


def _met(plan: ProgramPlan, took_s: float) -> bool:
    return plan.deadline_s is not None and took_s <= plan.deadline_s


def _tenants(
    workload: Workload, result: Result, alone_s: Callable[[ProgramPlan], float]
) -> dict[str, dict[str, float]]:
    out: dict[str, list[tuple[float, float]]] = {}
    for trace in result.programs:
        plan = workload.programs[trace.index]
        if plan.parent is None:
            took = trace.ended_at - trace.started_at
            out.setdefault(plan.tenant, []).append((took, took / alone_s(plan)))
    return {
        tenant: {
            "programs": len(rows),
            "jct_mean_s": statistics.fmean(r[0] for r in rows),
            "slowdown_mean": statistics.fmean(r[1] for r in rows),
        }
        for tenant, rows in sorted(out.items())
    }


def service_gap(workload: Workload, result: Result) -> int:
    """The furthest that one tenant's service was ever behind another's while both had programs under way.

    Service is tokens computed: prompt beyond what was cached, and output. A tenant that comes, or comes back, begins
    level with the least served of those who are there, so that nobody is owed for having been away.
    """
    tenant_of = {t.index: workload.programs[t.index].tenant for t in result.programs}
    told: list[
        tuple[float, int, str, int]
    ] = []  # at equal times, programs begin before steps end and before they end
    for program in result.programs:
        told.append((program.started_at, 0, tenant_of[program.index], 0))
        told.append((program.ended_at, 2, tenant_of[program.index], 0))
    told += [
        (s.ended_at, 1, tenant_of[s.program], s.prompt - s.cached + s.output)
        for s in result.steps
        if s.ok and s.program in tenant_of
    ]
    service: dict[str, int] = {}
    under_way: dict[str, int] = {}
    furthest = 0
    for _, kind, tenant, tokens in sorted(told):
        if kind == 0:
            if not under_way.get(tenant) and under_way:
                least = min(service[other] for other in under_way)
                service[tenant] = max(service.get(tenant, 0), least)
            service.setdefault(tenant, 0)
            under_way[tenant] = under_way.get(tenant, 0) + 1
        elif kind == 1:
            service[tenant] += tokens
            present = [service[other] for other in under_way]
            furthest = max(furthest, max(present, default=0) - min(present, default=0))
        else:
            under_way[tenant] -= 1
            if not under_way[tenant]:
                del under_way[tenant]
    return furthest


def jain(values: Sequence[float]) -> float:
    """Jain's index of equality: 1 when all are equal, 1/n when one has all."""
    squares = sum(v * v for v in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def over_seeds(runs: Sequence[Figures]) -> Figures:
    """Mean and half-width of the 95% confidence interval of every plain figure over runs that differ in seed."""
    out: Figures = {"seeds": len(runs)}
    for name, value in runs[0].items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        values = [float(r[name]) for r in runs if r.get(name) is not None]
        if not values:
            continue
        out[name] = statistics.fmean(values)
        if len(values) > 1:
            df = len(values) - 1
            t = T95[df - 1] if df <= len(T95) else 1.96
            out[f"{name}_ci"] = t * statistics.stdev(values) / math.sqrt(len(values))
    return out
