"""The fairness bench on a small run: light tenants are shielded, and the service gap stays far inside its bound."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from agentserve.sim.run import Trial


def test_a_heavy_tenant_costs_light_ones_at_most_a_quarter_over_their_share_alone() -> None:
    spec = importlib.util.spec_from_file_location("fairness", Path(__file__).parent / "fairness.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    trial = Trial(workload="mixed", programs=150, rate_per_s=0.5, pressure=None, seed=3, forecast="naive")
    ratios, gap, bound = bench.measured(trial)
    assert len(ratios) == 9
    assert max(ratios.values()) <= 1.25, ratios
    assert 0.0 < gap <= bound
