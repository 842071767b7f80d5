import random

import pytest

from agentserve.core.forecast import Calibration, Survival
from agentserve.core.forecast.grid import TOOL_SECONDS


def forecast_of(values: list[float]) -> Survival:
    masses = [0.0] * TOOL_SECONDS.bins
    for value in values:
        for place, part in TOOL_SECONDS.smear(value):
            masses[place] += part
    return Survival(TOOL_SECONDS, masses)


def test_an_honest_forecast_is_seen_to_be_calibrated_and_better_than_naive() -> None:
    rng = random.Random(2)
    calibration = Calibration()
    kinds = {
        middle: forecast_of([middle * rng.lognormvariate(0, 0.5) for _ in range(800)])
        for middle in (0.1, 20.0)
    }
    for _ in range(1_500):
        middle = rng.choice(list(kinds))
        calibration.observe(kinds[middle], middle * rng.lognormvariate(0, 0.5))
    numbers = calibration.numbers()
    assert numbers["coverage_p50"] == pytest.approx(0.5, abs=0.06)
    assert numbers["coverage_p90"] == pytest.approx(0.9, abs=0.04)
    assert numbers["coverage_p99"] == pytest.approx(0.99, abs=0.015)
    for q in ("p50", "p90", "p99"):
        assert numbers[f"loss_{q}"] < numbers[f"naive_loss_{q}"]


def test_an_overconfident_forecast_is_seen_to_be_so() -> None:
    rng = random.Random(4)
    calibration = Calibration()
    sure = forecast_of([1.0])
    for _ in range(500):
        calibration.observe(sure, rng.lognormvariate(0, 2))
    numbers = calibration.numbers()
    assert numbers["coverage_p99"] < 0.75
    assert numbers["ln_error"] > 1.0


def test_it_speaks_of_lately() -> None:
    calibration = Calibration()
    sure = forecast_of([1.0])
    for i in range(6_000):
        calibration.observe(sure, 1.0 if i < 3_000 else 500.0)
    assert calibration.numbers()["coverage_p90"] < 0.05
    assert calibration.outcomes == 6_000


def test_nothing_is_claimed_before_anything_was_seen() -> None:
    assert Calibration().numbers() == {}
