"""The report says what was asked of it, and nothing where there was nothing to judge."""

from __future__ import annotations

import pytest

from agentserve.sim.report import attained
from agentserve.sim.run import Trial, run


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
