"""Where an open loop stops keeping up, and what the ablations change."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from agentserve.sim.ablations import ABLATIONS, Ablation
from agentserve.sim.rates import Point, capped, sustained, svg
from agentserve.sim.run import Trial, run


def points(*slowdowns: float) -> list[Point]:
    return [Point(rate_per_s=float(i + 1), slowdown=s) for i, s in enumerate(slowdowns)]


@pytest.mark.parametrize(
    ("slowdowns", "rate"),
    [
        ((1.1, 1.2, 1.5), 3.0),  # never crossed: as high as was looked
        ((1.0, 1.5, 2.5), 2.5),  # crossed half way from the second to the third
        ((3.0, 4.0), None),
        ((1.0, 3.0, 1.5), 1.5),  # what comes back later is not believed
    ],
)
def test_the_sustained_rate_is_where_the_curve_crosses_the_bound(
    slowdowns: tuple[float, ...], rate: float | None
) -> None:
    assert sustained(points(*slowdowns)) == rate
    assert capped(points(*slowdowns)) == (max(slowdowns) >= 2.0)


def test_the_curve_is_well_formed_and_has_a_line_for_each_arm() -> None:
    root = ET.fromstring(svg({"a<b": points(1, 2, 30), "c": points(1, 1, 1)}, "coding & more"))
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 2
    assert "a<b" in "".join(root.itertext())


@pytest.mark.parametrize("arm", ABLATIONS, ids=lambda a: a.name)
def test_every_ablation_runs_and_finishes_every_program(arm: Ablation) -> None:
    trial = arm.of(
        Trial(workload="coding", engines=1, kv_tokens=130_000, programs=6, pressure=2.0, seed=3, check=True)
    )
    figures, _, _ = run(trial)
    assert figures["programs"] == 6


def test_ablations_change_one_thing_each() -> None:
    for arm in ABLATIONS[1:]:
        assert bool(arm.params) + bool(arm.scaled) + bool(arm.forecast) == 1, arm.name
