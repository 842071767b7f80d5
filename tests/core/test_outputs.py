"""Output forecasts against what outputs turn out to be."""

from __future__ import annotations

import random

import pytest

from agentserve.core.outputs import SEEN_MIN, Outputs


def taught(said: float, was: int, times: int = 2 * SEEN_MIN) -> Outputs:
    """It was told `said` of each of so many outputs, all `was` long."""
    outputs = Outputs()
    for _ in range(times):
        outputs.believed(said)
        outputs.finished(was)
    return outputs


@pytest.mark.parametrize("said", [20.0, 200.0, 240.0])
def test_forecasts_that_are_not_too_long_on_the_whole_pass_unchanged(said: float) -> None:
    outputs = taught(said, 200, times=1_000)
    assert outputs.believed(said) == said
    assert outputs.believed(5_000.0) == 5_000.0, "a single one may be of something new"


def test_forecasts_that_are_ten_times_too_long_are_brought_down_to_what_was() -> None:
    assert taught(2_000.0, 200).believed(2_000.0) == pytest.approx(200.0)


def test_before_much_was_seen_forecasts_are_believed() -> None:
    assert taught(2_000.0, 200, times=SEEN_MIN - 1).believed(2_000.0) == 2_000.0


def test_forecasts_off_by_random_factors_keep_no_more_room_than_is_written() -> None:
    rng = random.Random(7)
    outputs = Outputs()
    believed = was = 0.0
    for index in range(3_000):
        tokens = int(rng.lognormvariate(5.0, 1.0)) + 1
        given = outputs.believed(tokens * rng.lognormvariate(0.0, 3.0))
        outputs.finished(tokens)
        if index >= 500:
            believed, was = believed + given, was + tokens
    assert believed < 1.3 * was


def test_forecasts_that_become_right_are_believed_again() -> None:
    outputs = taught(2_000.0, 200)
    for _ in range(6_000):
        outputs.believed(200.0)
        outputs.finished(200)
    assert outputs.believed(200.0) == 200.0
