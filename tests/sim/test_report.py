"""The report says what was asked of it, and nothing where there was nothing to judge."""

from __future__ import annotations

import pytest

from agentserve.sim.programs import ProgramPlan, StepPlan, Workload
from agentserve.sim.report import attained, service_gap
from agentserve.sim.run import Trial, run
from agentserve.sim.traces import ProgramTrace, Result, StepTrace


def test_an_objective_is_attained_by_the_share_within_it() -> None:
    assert attained([1.0, 2.0, 3.0, 4.0], 3.0) == 0.75
    assert attained([1.0], None) is None
    assert attained([], 1.0) is None


def test_a_run_tells_objectives_and_what_pins_spared_and_cost() -> None:
    figures, _, _ = run(
        Trial(workload="coding", programs=24, engines=1, pressure=3.0, slo_ttft_s=1e9, slo_slowdown=0.0)
    )
    assert figures["slo_ttft_met"] == 1.0
    assert figures["slo_slowdown_met"] == 0.0
    assert figures["pins_saved_s"] > figures["pins_cost_s"] > 0.0
    assert figures["pins_saved_s"] == pytest.approx(figures["policy"]["pins_saved_s"], abs=1e-5)


def test_warms_tell_what_they_computed_and_what_they_kept() -> None:
    figures, _, _ = run(Trial(workload="coding", programs=40, engines=1, pressure=3.0))
    assert figures["warms"] > 0
    assert figures["warm_refreshed_tokens"] > figures["warm_restored_tokens"] >= 0


def plan(name: str, tenant: str) -> ProgramPlan:
    step = StepPlan(new_tokens=1, output_tokens=1)
    return ProgramPlan(id=name, tenant=tenant, steps=(step,))


def served(program: int, at: float, tokens: int) -> StepTrace:
    return StepTrace(program=program, index=0, sent_at=0.0, ended_at=at, prompt=tokens + 5, cached=5)


def test_the_gap_in_service_is_the_furthest_that_one_was_behind_another_while_both_were_there() -> None:
    workload = Workload(
        name="x", programs=[plan("a", "heavy"), plan("b", "light"), plan("c", "late")], seed=1
    )
    result = Result(
        programs=[
            ProgramTrace(index=0, started_at=0.0, ended_at=10.0),
            ProgramTrace(index=1, started_at=0.0, ended_at=4.0),
            ProgramTrace(index=2, started_at=5.0, ended_at=10.0),
        ],
        steps=[
            served(0, 1.0, 100),
            served(1, 2.0, 40),
            served(0, 3.0, 30),
            served(0, 4.5, 500),
            served(2, 6.0, 70),
        ],
    )
    # 100 to 0 at first, then 60, then 90; the late one begins level with whoever is there, and ends 70 ahead
    assert service_gap(workload, result) == 100


def test_one_tenant_alone_is_behind_nobody() -> None:
    figures, _, _ = run(Trial(workload="coding", programs=8, engines=1))
    assert figures["service_gap_tokens"] == 0
    figures, _, _ = run(Trial(workload="mixed", programs=40, engines=1))
    assert figures["service_gap_tokens"] > 0
