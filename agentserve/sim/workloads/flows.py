"""Workflows with a known shape: role chains, research fan-outs, text-to-SQL, and one-shot chats.

- chains: ten fixed roles in sequence, each with a large prompt of its own that all programs share (the shape of
  KVFlow's and PEER's experiments: thousands of fixed tokens a role, short hand-overs between them).
- fanout: a lead plans, starts three to six sub-agents in parallel, waits for all, and writes up; up to three rounds.
- text2sql: schema linking, generation, execution, a repair loop taken with p = 0.35, a final check; with deadlines.
- chat: one call, no tools; prompts and outputs of the Azure 2023 conversation trace (p50 / p90: 1,020 / 2,400 and
  130 / 430 tokens).
"""

from __future__ import annotations

from agentserve.sim.programs import OWN_KEYS, SUB_AGENT, ProgramPlan, Run, StepPlan, ToolPlan
from agentserve.sim.workloads.draws import Draws

ROLES = 10
ROLE_KEY = 100
ROLE_TOKENS = 6_000
DATABASES = 20
REPAIR_P = 0.35  # that a query fails, so that another step follows to repair it
DATABASE_KEY = 1_000


def chain(index: int, seed: int, *, name: str = "chains", tenant: str = "default") -> ProgramPlan:
    """One pass of a document through ten roles."""
    draws = Draws(name, seed, index)
    carried = int(draws.by_p90(900, 2500, most=6000))
    steps = []
    for k in range(ROLES):
        output = max(16, int(draws.by_p90(180, 420, most=1200)))
        own = OWN_KEYS + index * 16 + k
        steps.append(
            StepPlan(
                new_tokens=0,
                output_tokens=output,
                contents=(Run(ROLE_KEY + k, ROLE_TOKENS), Run(own, carried)),
                handed=k > 0,
                tools=(),
                think_s=0.0 if k == ROLES - 1 else draws.lognormal(0.08, 0.8, most=5.0),
                node=f"role{k}",
                role=ROLE_KEY + k,
            )
        )
        carried += output
    return ProgramPlan(
        id=f"{name}-{seed}-{index}",
        steps=tuple(steps),
        tenant=tenant,
        workflow="chain",
        role=ROLE_KEY,
        own=OWN_KEYS + index * 16,
    )


def fanout(first: int, seed: int, *, name: str = "fanout", tenant: str = "default") -> list[ProgramPlan]:
    """A lead and its sub-agents; `first` is the index that the lead gets in the workload."""
    draws = Draws(name, seed, first)
    children: list[ProgramPlan] = []
    steps = []
    for _ in range(draws.rng.randint(1, 3)):
        team = range(draws.rng.randint(3, 6))
        started = tuple(first + 1 + len(children) + i for i in team)
        children += [_searcher(i, first, seed, name=name, tenant=tenant) for i in started]
        steps.append(
            StepPlan(
                new_tokens=int(draws.by_p90(2500, 6000, most=20_000)),
                output_tokens=max(32, int(draws.by_p90(300, 900, most=3000))),
                children=started,
                tools=(SUB_AGENT,) * len(started),
                think_s=0.05,
                node="plan",
            )
        )
    steps.append(
        StepPlan(
            new_tokens=int(draws.by_p90(3000, 8000, most=20_000)),
            output_tokens=max(64, int(draws.by_p90(900, 2200, most=4000))),
            node="write",
        )
    )
    lead = ProgramPlan(
        id=f"{name}-{seed}-{first}",
        steps=tuple(steps),
        tenant=tenant,
        workflow="research",
        role=11,
        shared=(Run(11, 3_000),),
        own=OWN_KEYS + first,
        tools_offered=3,
    )
    return [lead, *children]


def _searcher(index: int, parent: int, seed: int, *, name: str, tenant: str) -> ProgramPlan:
    draws = Draws(name, seed, "child", index)
    length = draws.count(6, 14, most=30, least=2)
    steps = []
    for k in range(length):
        last = k == length - 1
        tool = draws.pick({"web_search": 0.5, "web_fetch": 0.5})
        seconds = (
            draws.by_p90(1.2, 6.0, most=60) if tool == "web_search" else draws.by_p90(2.0, 15.0, most=120)
        )
        steps.append(
            StepPlan(
                new_tokens=int(draws.by_p90(1500, 6000, most=20_000)),
                output_tokens=max(16, int(draws.by_p90(150, 600, most=2000))),
                tools=() if last else (ToolPlan(name=tool, argument_class="www", seconds=seconds),),
                think_s=0.0 if last else 0.03,
                node="search",
            )
        )
    return ProgramPlan(
        id=f"{name}-{seed}-{parent}-{index}",
        steps=tuple(steps),
        tenant=tenant,
        workflow="searcher",
        role=12,
        shared=(Run(12, 2_500),),
        own=OWN_KEYS + index,
        parent=parent,
        tools_offered=2,
    )


def text2sql(index: int, seed: int, *, name: str = "text2sql", tenant: str = "default") -> ProgramPlan:
    """One question over one of twenty databases."""
    draws = Draws(name, seed, index)
    database = draws.rng.randrange(DATABASES)
    schema = 3_000 + (database * 7919) % 6_000
    nodes = ["link", "generate"]
    while True:
        nodes.append("execute")
        if len(nodes) > 20 or not draws.chance(REPAIR_P):
            break
        nodes.append("repair")
    nodes.append("check")
    steps = []
    for k, node in enumerate(nodes):
        if node == "execute":
            continue
        runs_query = k + 1 < len(nodes) and nodes[k + 1] == "execute"
        tool = ToolPlan(name="sql", argument_class="select", seconds=draws.by_p90(0.12, 0.6, most=20))
        steps.append(
            StepPlan(
                new_tokens=int(draws.by_p90(150, 400, most=2000)),
                output_tokens=max(8, int(draws.by_p90(120, 380, most=1200))),
                tools=(tool,) if runs_query else (),
                think_s=0.0 if node == "check" else 0.02,
                node=node,
            )
        )
    return ProgramPlan(
        id=f"{name}-{seed}-{index}",
        steps=tuple(steps),
        tenant=tenant,
        workflow="text2sql",
        role=21,
        shared=(Run(DATABASE_KEY + database, schema),),
        own=OWN_KEYS + index,
        deadline_s=draws.rng.choice([15.0, 30.0, 60.0]),
        tools_offered=1,
    )


def chat(index: int, seed: int, *, name: str = "chat", tenant: str = "default") -> ProgramPlan:
    """One question, one answer."""
    draws = Draws(name, seed, index)
    step = StepPlan(
        new_tokens=int(draws.by_p90(1020, 2400, most=8000, least=16)),
        output_tokens=max(4, int(draws.by_p90(130, 430, most=1000))),
    )
    return ProgramPlan(
        id=f"{name}-{seed}-{index}",
        steps=(step,),
        tenant=tenant,
        workflow="chat",
        role=31,
        shared=(Run(31, 200),),
        own=OWN_KEYS + index,
        priority="interactive",
        kind="chat",
    )
