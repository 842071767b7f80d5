"""Generated workloads by name. Each is a finite list of programs, drawn from distributions that its module states.

Rule: nothing is read from a file. Recorded traffic comes through `agentserve.sim.importers`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from agentserve.errors import UsageError
from agentserve.sim.programs import OWN_KEYS, ProgramPlan, Workload
from agentserve.sim.workloads import coding, flows

MIXED_TENANTS = 10


def _each(make: Callable[[int, int], ProgramPlan]) -> Callable[[int, int], list[ProgramPlan]]:
    return lambda programs, seed: [make(i, seed) for i in range(programs)]


def _fanout(programs: int, seed: int) -> list[ProgramPlan]:
    out: list[ProgramPlan] = []
    for _ in range(programs):
        out += flows.fanout(len(out), seed)
    return out


def _mixed(programs: int, seed: int) -> list[ProgramPlan]:
    """Ten tenants. The first sends half of all programs; the others share the rest, agents beside chats."""
    out: list[ProgramPlan] = []
    for i in range(programs):
        if i % 2 == 0:
            out.append(coding.autonomous(i, seed, name="mixed", tenant="heavy"))
            continue
        light = (i // 2) % (MIXED_TENANTS - 1)
        tenant = f"light{light}"
        kind = (i // (2 * (MIXED_TENANTS - 1)) + light) % 3
        if kind == 0:
            out.append(coding.autonomous(i, seed, name="mixed", tenant=tenant))
        elif kind == 1:
            out.append(flows.chain(i, seed, name="mixed", tenant=tenant))
        else:
            out.append(flows.chat(i, seed, name="mixed", tenant=tenant))
    return out


WORKLOADS: dict[str, Callable[[int, int], list[ProgramPlan]]] = {
    "coding": _each(lambda i, s: coding.autonomous(i, s, name="coding")),
    "slowtools": _each(lambda i, s: coding.autonomous(i, s, name="slowtools", seconds=coding.slow)),
    "heavytail": _each(lambda i, s: coding.autonomous(i, s, name="heavytail", seconds=coding.heavy)),
    "interactive": _each(coding.interactive),
    "chains": _each(flows.chain),
    "fanout": _fanout,
    "text2sql": _each(flows.text2sql),
    "chat": _each(flows.chat),
    "mixed": _mixed,
}


def make_workload(name: str, *, programs: int, seed: int) -> Workload:
    """The workload of this name with this many root programs."""
    if name not in WORKLOADS:
        near = difflib.get_close_matches(name, WORKLOADS, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(WORKLOADS))}"
        raise UsageError(f"there is no workload `{name}`", remedy=remedy)
    plans = WORKLOADS[name](programs, seed)
    shared: dict[int, int] = {}
    for plan in plans:
        for run in plan.shared:
            shared[run.key] = run.tokens
        for step in plan.steps:
            for run in step.contents or ():
                if run.key < OWN_KEYS:
                    shared[run.key] = run.tokens
    return Workload(name=name, programs=plans, seed=seed, shared_tokens=sum(shared.values()))
