"""Neighbours: the distances by column are those by hand, and a panel stands only while little was learned since."""

from __future__ import annotations

import random

import pytest

from agentserve.core.forecast.neighbours import SAMPLES_PER_MILESTONE, Neighbours, Panel, Sample, _Scale

FEATURES = 11  # no multiple of four


def sample(rng: random.Random, role: int = 0) -> Sample:
    features = tuple(rng.gauss(0.0, 1.0) for _ in range(FEATURES))
    return Sample(features=features, kinds=(role, 7, 7), steps=rng.randrange(40), tokens=1.0, seconds=1.0)


def test_distances_by_column_are_those_of_each_pair() -> None:
    rng = random.Random(1)
    samples = [sample(rng, role=i % 2) for i in range(30)]
    scales = [_Scale(mean=0.0, per_sd=float(i != 3), relevance=0.1 * (i % 4)) for i in range(FEATURES)]
    asked = sample(rng)
    even, judged = Panel(samples, scales, 1).distances(asked.features, asked.kinds)
    used = [i for i in range(1, FEATURES) if i != 3]
    relevance = sum(scales[i].relevance for i in used)
    for at, known in enumerate(samples):
        gaps = [abs(a - b) for a, b in zip(asked.features, known.features, strict=True)]
        start = 0.125 * gaps[0] + (0.02 if known.kinds[0] != asked.kinds[0] else 0.0)
        assert even[at] == pytest.approx(start + sum(gaps[i] / len(used) for i in used))
        assert judged[at] == pytest.approx(
            start + sum(gaps[i] * scales[i].relevance / relevance for i in used)
        )


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
