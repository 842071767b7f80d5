"""The agent programs that every arm runs: generated or recorded ones, cut to what a minute of real time can hold.

Rule: a function of the workload's name (or file), the seed and the constants below; no arm sees other programs than
another. Cutting keeps each program's middle, with what came before folded into its first prompt.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserve.sim.importers import read
from agentserve.sim.programs import ProgramPlan, Run, StepPlan, Workload
from agentserve.sim.workloads import make_workload

PRESSURE = 2.0
OUTPUT_TOKENS_MIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a workload is run with. Chosen so that no processor is the bottleneck on a machine of two cores."""

    programs: int
    steps_max: int  # of a program
    kv_tokens: int  # of each engine
    time_scale: float
    profile: str = "llama-3.1-8b-h100"
    engines: int = 2
    shrink: int = 1  # contexts and outputs are divided by this
    gap_s_max: float = 20.0
    output_tokens_max: int = 500


SETTINGS = {
    "coding": Setting(programs=48, steps_max=8, kv_tokens=240_000, time_scale=10.0),
    "chains": Setting(programs=170, steps_max=5, kv_tokens=80_000, time_scale=4.0),
    # Recorded Claude Code sessions with contexts of 100k tokens: a quarter of each, and of the KV, on an engine whose
    # prefill takes so much longer that simulated policies compare as they do at full size on one H100.
    "weka": Setting(
        programs=36,
        steps_max=8,
        kv_tokens=99_000,
        time_scale=40.0,
        profile="llama-3.1-70b-4xa100",
        shrink=4,
        gap_s_max=120.0,
    ),
}


def programs(name: str, setting: Setting, *, seed: int, file: Path | None = None) -> Workload:
    """The programs of an arm."""
    if file is not None:
        found = read(file).workload
        roots = list(found.roots)
        random.Random(f"peers:{seed}").shuffle(roots)
    else:
        # twice as many as needed, since the short ones fall away
        found = make_workload(name, programs=2 * setting.programs, seed=seed)
        roots = list(found.roots)
    context_max = setting.kv_tokens // 3
    plans: list[ProgramPlan] = []
    chosen = 0
    for root in roots:
        family = cut(found.programs, root, setting, len(plans))
        if len(family[0].steps) < setting.steps_max or any(max(p.prompts()) > context_max for p in family):
            continue
        plans += family
        chosen += 1
        if chosen == setting.programs:
            break
    return Workload(name=name, programs=plans, seed=seed, shared_tokens=_shared_tokens(plans))


def cut(plans: Sequence[ProgramPlan], index: int, setting: Setting, first: int) -> list[ProgramPlan]:
    """A program and its sub-agents, each its middle steps alone; `first` is the place it gets."""
    out: list[ProgramPlan] = []

    def take(index: int, parent: int | None) -> int:
        plan = plans[index]
        place = first + len(out)
        out.append(plan)
        steps = _middle(plan, setting)
        mended = []
        for step in steps:
            children = tuple(take(child, place) for child in step.children)
            mended.append(dataclasses.replace(step, children=children))
        out[place - first] = dataclasses.replace(plan, steps=tuple(mended), parent=parent, arrives_s=None)
        return place

    take(index, None)
    return out


def _middle(plan: ProgramPlan, setting: Setting) -> list[StepPlan]:
    length = min(len(plan.steps), setting.steps_max)
    start = (len(plan.steps) - length) // 2
    shared = sum(r.tokens for r in plan.shared)
    prompts = plan.prompts()
    out = []
    for k in range(start, start + length):
        step = plan.steps[k]
        new = prompts[k] - shared if k == start else step.new_tokens
        contents = None
        if step.contents is not None:
            contents = tuple(Run(r.key, max(r.tokens // setting.shrink, 1)) for r in step.contents)
        out.append(
            dataclasses.replace(
                step,
                new_tokens=new if contents is None else 0,
                compact_to=None if k == start else step.compact_to,
                contents=contents,
                handed=step.handed and k > start,
                output_tokens=max(
                    min(step.output_tokens // setting.shrink, setting.output_tokens_max), OUTPUT_TOKENS_MIN
                ),
                tools=tuple(
                    dataclasses.replace(t, seconds=min(t.seconds, setting.gap_s_max)) for t in step.tools
                ),
                think_s=min(step.think_s, setting.gap_s_max),
            )
        )
    # where it is cut it is over: an agent's last reply asks for nothing
    out[-1] = dataclasses.replace(out[-1], tools=(), children=(), human=False, think_s=0.0)
    return out


def _shared_tokens(plans: Sequence[ProgramPlan]) -> int:
    """Distinct runs that several programs use."""
    users: dict[int, set[str]] = {}
    tokens: dict[int, int] = {}
    for plan in plans:
        for run in (*plan.shared, *(r for s in plan.steps for r in s.contents or ())):
            users.setdefault(run.key, set()).add(plan.id)
            tokens[run.key] = max(tokens.get(run.key, 0), run.tokens)
    return sum(n for key, n in tokens.items() if len(users[key]) > 1)


def concurrency(workload: Workload, setting: Setting) -> int:
    """How many programs are under way at once: `PRESSURE` times what the engines' KV holds."""
    wanted = workload.concurrency(PRESSURE, setting.kv_tokens * setting.engines)
    return max(2, min(wanted, len(workload.roots)))
