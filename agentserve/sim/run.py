"""One simulated run from its description: build workload, engines, scheduler and world; run; summarise.

Rule: a `Trial` says everything that matters, so equal trials give equal figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from agentserve.core.board import Board, Limits, Share
from agentserve.core.foresight import Foresight, Naive
from agentserve.core.ids import TenantId
from agentserve.core.learned import Learned
from agentserve.core.policies import make_policy
from agentserve.core.scheduler import Scheduler
from agentserve.engine import EmulatedEngine, EngineConfig, Profile, profile
from agentserve.errors import UsageError
from agentserve.sim.belady import best_cached_tokens
from agentserve.sim.contents import common_tokens
from agentserve.sim.faults import draw_faults
from agentserve.sim.oracle import Oracle
from agentserve.sim.programs import ProgramPlan, Run, Workload
from agentserve.sim.report import Figures, summarise
from agentserve.sim.traces import Result
from agentserve.sim.workloads import make_workload
from agentserve.sim.world import World

BLOCK_TOKENS = 16
PROGRAM_IDLE_S = 1800.0  # after this a program whose end was not told counts as over, as in a gateway
FORECASTS = ("learned", "naive", "oracle", "lengths", "lengths0.7", "wrong10", "wrong0.1", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run."""

    workload: str | Workload = "coding"
    policy: str = "agentserve"
    params: Mapping[str, Any] = field(default_factory=dict)
    engines: int = 4
    profile: str | Profile = "llama-3.1-8b-h100"
    kv_tokens: int | None = None
    speeds: tuple[float, ...] = ()
    pressure: float | None = 2.0  # closed loop: contexts under way over the fleet's KV
    at_once: int | None = None  # closed loop: programs under way, whatever the fleet; goes before `pressure`
    rate_per_s: float | None = None  # open loop: programs a second
    burst: float = 1.0  # of open-loop arrivals: 1 is Poisson, more clumps them
    programs: int = 300
    seed: int = 1
    forecast: str = "learned"
    faults: int = 0
    check: bool = False
    priority_scheduling: bool = False
    sample_every_s: float = 0.0
    slo_ttft_s: float | None = None
    slo_slowdown: float | None = None
    ends_told: bool = True  # clients say which of a program's steps is its last; plain ones do not
    native_pins: bool = False  # the engines hold a prefix when told to, as no stock engine does
    host_kv_tokens: int = 0  # of each engine, a second tier in host memory
    host_gb_per_s: float = 50.0  # from there to the accelerator
    block_tokens: int = BLOCK_TOKENS
    weights: Mapping[str, float] = field(default_factory=dict)
    until_s: float = 10_000_000.0


def build(trial: Trial) -> World:
    """The world of a trial, not yet run."""
    shape = profile(trial.profile)
    config = EngineConfig(
        block_size=trial.block_tokens,
        kv_tokens=trial.kv_tokens,
        policy="priority" if trial.priority_scheduling else "fcfs",
        host_kv_tokens=trial.host_kv_tokens,
        host_bandwidth=trial.host_gb_per_s * 1e9,
    )
    engines = []
    for index in range(trial.engines):
        engine = EmulatedEngine(profile=shape, config=config)
        if trial.speeds:
            engine.set_speed(trial.speeds[index % len(trial.speeds)])
        engines.append(engine)
    workload = workload_of(trial)
    fleet_kv = sum(e.kv_tokens for e in engines)
    foresight, oracle = make_foresight(trial.forecast, trial.seed)
    board = Board(
        foresight=foresight,
        seed=trial.seed,
        limits=Limits(
            queue_timeout_s=1e9,
            program_idle_s=1e9 if trial.ends_told else PROGRAM_IDLE_S,
            waiting_steps_max=1_000_000,
        ),
        shares={TenantId(t): Share(weight=w) for t, w in trial.weights.items()},
    )
    scheduler = Scheduler(board, make_policy(trial.policy, board, trial.params))
    concurrency = None  # open loop, unless a closed one is asked for
    if trial.at_once is not None:
        concurrency = trial.at_once
    elif trial.rate_per_s is None and trial.pressure is not None:
        concurrency = workload.concurrency(trial.pressure, fleet_kv)
    return World(
        workload=workload,
        engines=engines,
        scheduler=scheduler,
        concurrency=concurrency,
        oracle=oracle,
        faults=draw_faults(seed=trial.seed, count=trial.faults, until_s=2000.0) if trial.faults else (),
        check=trial.check,
        sample_every_s=trial.sample_every_s,
        native_pins=trial.native_pins,
        ends_told=trial.ends_told,
        until_s=trial.until_s,
    )


def run(trial: Trial, progress: Callable[[int], None] | None = None) -> tuple[Figures, World, Result]:
    """Run it; the figures, and the world for whoever wants to look closer."""
    world = build(trial)
    result = world.run(progress)
    shape = world.engines[0].profile
    figures = summarise(
        world.workload,
        result,
        lambda plan: alone_s(plan, shape),
        world.scheduler.policy.figures(),
        slo_ttft_s=trial.slo_ttft_s,
        slo_slowdown=trial.slo_slowdown,
    )
    figures["concurrency"] = world.concurrency
    best = best_cached_tokens(result.steps, [e.kv_tokens for e in world.engines])
    found = sum(s.cached for s in result.steps if s.ok)
    figures["cached_of_belady"] = found / best if best else 1.0
    stats = [e.stats(world.now) for e in world.engines]
    figures["preemptions"] = sum(s.preemptions for s in stats)
    if trial.host_kv_tokens:
        figures["host_hit_tokens"] = sum(s.host_hit_tokens for s in stats)
    figures["engine_busy_share"] = sum(s.busy_s for s in stats) / (len(stats) * max(world.now, 1e-9))
    return figures, world, result


def workload_of(trial: Trial) -> Workload:
    """The workload, with arrival times when the loop is open."""
    if isinstance(trial.workload, Workload):
        made = trial.workload
    else:
        made = _generated(trial.workload, trial.programs, trial.seed)
    if trial.rate_per_s is None:
        return made
    if trial.rate_per_s <= 0:
        raise UsageError("the rate is not positive", remedy="give --rate in programs a second")
    rng = random.Random(f"arrivals:{trial.seed}")
    at = 0.0
    programs = list(made.programs)
    for index in made.roots:
        # a gamma gap with mean 1/rate; shape 1/burst: 1 is Poisson, less than 1 clumps
        at += rng.gammavariate(1.0 / trial.burst, trial.burst / trial.rate_per_s)
        programs[index] = _arriving(programs[index], at)
    return Workload(name=made.name, programs=programs, seed=made.seed, shared_tokens=made.shared_tokens)


def _arriving(plan: ProgramPlan, at: float) -> ProgramPlan:
    import dataclasses

    return dataclasses.replace(plan, arrives_s=at)


@lru_cache(maxsize=4)
def _generated(name: str, programs: int, seed: int) -> Workload:
    return make_workload(name, programs=programs, seed=seed)


def make_foresight(kind: str, seed: int) -> tuple[Foresight, Oracle | None]:
    """The forecasts a scheduler gets: learned as it goes, or an oracle's, exact or off by a stated error."""
    if kind == "naive":
        return Naive(), None
    if kind == "learned":
        return Learned(), None
    oracle: dict[str, Any] = {
        "oracle": {},
        "lengths": {"gaps_error": None, "outputs_error": None},
        "lengths0.7": {"lengths_error": 0.7, "gaps_error": None, "outputs_error": None},
        "wrong10": {"factor": 10.0},
        "wrong0.1": {"factor": 0.1},
        "random": {"lengths_error": 3.0, "gaps_error": 3.0, "outputs_error": 3.0},
    }
    if kind not in oracle:
        raise UsageError(f"there is no forecast `{kind}`", remedy=f"known are {', '.join(FORECASTS)}")
    made = Oracle(fallback=Learned(), seed=seed, **oracle[kind])
    return made, made


def alone_s(plan: ProgramPlan, shape: Profile) -> float:
    """How long the program takes on an idle engine that keeps its KV: prefill of what is new, decode, gaps."""
    total = 0.0
    before = 0
    contents: tuple[Run, ...] = ()
    for prompt, step in zip(plan.prompts(), plan.steps, strict=True):
        if step.contents is not None:
            fresh = prompt - common_tokens(contents, step.contents)
            contents = step.contents
        else:
            fresh = prompt - before if step.compact_to is None else prompt
        total += shape.prefill_s(max(fresh, 1), prompt)
        total += step.output_tokens * shape.decode_step_s(1, prompt + step.output_tokens // 2)
        before = prompt + step.output_tokens
        total += step.gap_s
    return max(total, 1e-6)
