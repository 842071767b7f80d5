"""Neighbours: bits that differ count the distance by hand, and a panel stands only while little was learned since."""

from __future__ import annotations

import math
import random

import pytest

from agentserve.core.forecast.grid import STEPS
from agentserve.core.forecast.neighbours import (
    SAMPLES_PER_MILESTONE,
    Neighbours,
    Panel,
    Ruler,
    Sample,
    _Scale,
)

FEATURES = 11
BIT = 0.02  # of distance
BANDWIDTH = 0.15


def sample(rng: random.Random, role: int = 0) -> Sample:
    features = tuple(rng.gauss(0.0, 1.0) for _ in range(FEATURES))
    return Sample(features=features, kinds=(role, 7, 7), steps=rng.randrange(40), tokens=1.0, seconds=1.0)


def scales() -> list[_Scale]:
    return [_Scale(mean=0.0, per_sd=float(i != 3), relevance=0.1 * (i % 4)) for i in range(FEATURES)]


def by_hand(one: Sample, other: Sample) -> float:
    """A quarter by relevance, the rest by every feature alike; the step has a weight of its own, a constant none."""
    known = scales()
    used = [i for i in range(1, FEATURES) if i != 3]
    relevance = sum(known[i].relevance for i in used)
    gaps = [abs(a - b) for a, b in zip(one.features, other.features, strict=True)]
    return 0.125 * gaps[0] + sum(
        gaps[i] * (0.75 / len(used) + 0.25 * known[i].relevance / relevance) for i in used
    )


def test_bits_that_differ_are_the_distance_to_within_their_number() -> None:
    rng = random.Random(1)
    ruler = Ruler(scales())
    for _ in range(200):
        one, other = sample(rng), sample(rng)
        differing = (
            ruler.code(one.features, one.kinds) ^ ruler.code(other.features, other.kinds)
        ).bit_count()
        # each feature is rounded to a bit, one way or the other
        assert BIT * differing == pytest.approx(by_hand(one, other), abs=BIT * FEATURES)
        assert ruler.likeness[differing] == pytest.approx(math.exp(-BIT * differing / BANDWIDTH))


def test_what_lies_far_out_is_as_far_as_can_be_told() -> None:
    rng = random.Random(4)
    ruler = Ruler(scales())
    one = sample(rng)
    far, farther = (
        ruler.code([*one.features[:-1], value], one.kinds) for value in (50.0, 1e9)
    )  # neither overflows nor reaches into another feature's bits
    assert far == farther
    assert far.bit_length() == ruler.code(one.features, one.kinds).bit_length()


def test_another_role_makes_a_program_less_alike() -> None:
    rng = random.Random(3)
    ruler = Ruler(scales())
    one = sample(rng)
    same, other = ruler.code(one.features, (5, 7, 7)), ruler.code(one.features, (6, 7, 7))
    assert (same ^ other).bit_count() == 2


def test_a_panel_weighs_each_sample_by_its_likeness_in_the_order_of_what_was_left() -> None:
    rng = random.Random(5)
    neighbours = Neighbours(FEATURES)
    known = [sample(rng, role=i % 2) for i in range(60)]
    for one in known:
        neighbours.add([(0, one)])
    panel = neighbours.panel(0)
    asked = known[-1]
    weights = panel.weights(asked.features, asked.kinds)
    assert len(weights) == len(panel)
    assert max(weights) == 1.0, "it is among them"
    bins = panel.bins(STEPS, "steps")
    assert bins == sorted(bins)
    assert [place for place, begin, end in panel.parts for _ in range(begin, end)] == bins


def test_a_panel_stands_until_a_sixteenth_of_what_it_rests_on_is_new() -> None:
    rng = random.Random(2)
    neighbours = Neighbours(FEATURES)
    made = 0
    before: Panel | None = None
    for _ in range(4 * SAMPLES_PER_MILESTONE):
        neighbours.add([(0, sample(rng))])
        panel = neighbours.panel(0)
        made += panel is not before
        before = panel
        known = min(neighbours.programs, SAMPLES_PER_MILESTONE)
        assert known - known // 16 - 1 <= len(panel) <= known
    assert made < 2 * SAMPLES_PER_MILESTONE  # most asked of one that was made before
