"""What going direct would have found: held against simulated engines that are really called directly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agentserve.core import decisions as do
from agentserve.core import events as ev
from agentserve.core.audience import Audience
from agentserve.core.direct import Direct
from agentserve.core.ids import EngineId, ProgramId, StepId, TenantId
from agentserve.sim.run import Trial, build


def figures(policy: str, *, workload: str, pressure: float) -> tuple[float, float]:
    """Of the prompts of returning steps: the share that was cached, and the share estimated for going direct."""
    world = build(
        Trial(
            policy=policy,
            workload=workload,
            pressure=pressure,
            engines=2,
            programs=50,
            kv_tokens=120_000,
        )
    )
    direct = Direct(world.scheduler.board)
    audience = Audience(direct.hears)
    handle = world.scheduler.handle

    def heard(event: ev.AnyEvent, now: float) -> Any:
        decided = handle(event, now)
        audience.tell(event, now, list(decided))
        return decided

    world.scheduler.handle = heard  # type: ignore[method-assign]  # a tap between the two
    world.run()
    out = direct.figures()
    return out["cached_tokens"] / out["prompt_tokens"], out["direct_cached_tokens"] / out["prompt_tokens"]


@pytest.mark.parametrize("workload", ["coding", "mixed"])
def test_the_estimate_never_claims_more_than_was_saved_over_engines_called_directly(workload: str) -> None:
    really, _ = figures("affinity", workload=workload, pressure=2.5)
    ours, estimated = figures("agentserve", workload=workload, pressure=2.5)
    assert really <= estimated, "going direct is made out to be worse than it is"
    assert estimated < ours - 0.05, "agents that thrash engines are not seen"


def test_nothing_is_claimed_while_all_contexts_fit() -> None:
    ours, estimated = figures("agentserve", workload="coding", pressure=0.4)
    assert estimated == pytest.approx(ours, abs=0.01)


def direct_of_one_engine(kv_tokens: int) -> tuple[Any, Direct]:
    world = build(Trial(engines=1, programs=1, kv_tokens=kv_tokens))
    return world.scheduler, Direct(world.scheduler.board)


def test_an_agent_that_is_over_or_away_for_long_takes_no_room() -> None:
    scheduler, direct = direct_of_one_engine(100_000)
    audience = Audience(direct.hears)

    def tell(event: ev.AnyEvent, now: float) -> None:
        audience.tell(event, now, list(scheduler.handle(event, now)))

    tell(ev.EngineBack(engine=EngineId("engine-0")), 0.0)
    tell(ev.EngineReported(engine=EngineId("engine-0"), kv_tokens=100_000), 0.0)
    for i in range(4):
        arrived = ev.StepArrived(
            step=StepId(f"s{i}"), program=ProgramId(f"p{i}"), tenant=TenantId("t"), prompt_tokens=10_000
        )
        tell(arrived, 1.0)
    assert direct.contexts_over_kv() == pytest.approx(0.4)
    for i in range(3):
        tell(
            ev.StepFinished(
                step=StepId(f"s{i}"), prompt_tokens=10_000, output_tokens=10, cached_tokens=0, final=i == 0
            ),
            2.0,
        )
    assert direct.contexts_over_kv() == pytest.approx(0.3)
    tell(ev.ProgramEnded(program=ProgramId("p1")), 3.0)
    assert direct.contexts_over_kv() == pytest.approx(0.2)
    tell(
        ev.StepArrived(step=StepId("z"), program=ProgramId("z"), tenant=TenantId("t"), prompt_tokens=10_000),
        500.0,
    )
    # p2 is in a gap for minutes; the step of p3 still runs
    assert direct.contexts_over_kv() == pytest.approx(0.2)


def test_what_the_scheduler_has_forgotten_takes_no_room() -> None:
    scheduler, direct = direct_of_one_engine(100_000)
    audience = Audience(direct.hears)

    def tell(event: ev.AnyEvent, now: float) -> None:
        audience.tell(event, now, list(scheduler.handle(event, now)))

    def arrives(name: str, now: float) -> None:
        step, program = StepId(f"s-{name}"), ProgramId(name)
        tell(ev.StepArrived(step=step, program=program, tenant=TenantId("t"), prompt_tokens=10_000), now)

    tell(ev.EngineBack(engine=EngineId("engine-0")), 0.0)
    tell(ev.EngineReported(engine=EngineId("engine-0"), kv_tokens=100_000), 0.0)
    scheduler.board.limits = replace(scheduler.board.limits, program_idle_s=25.0)
    arrives("silent", 1.0)
    tell(ev.StepFinished(step=StepId("s-silent"), prompt_tokens=10_000, output_tokens=10), 2.0)
    arrives("other", 20.0)
    assert direct.contexts_over_kv() == pytest.approx(0.2)
    tell(ev.TimerFired(), 30.0)  # the scheduler has heard nothing of it for its idle time
    arrives("third", 31.0)
    assert direct.contexts_over_kv() == pytest.approx(0.2)


def test_a_decision_on_a_step_that_is_not_known_is_passed_over() -> None:
    _, direct = direct_of_one_engine(1000)
    Audience(direct.hears).tell(ev.TimerFired(), 0.0, [do.Dispatch(step=StepId("x"), engine=EngineId("e"))])
    assert direct.figures() == {}
