"""Forecasts that are kept must stay those that would be made anew."""

from __future__ import annotations

import pytest

from agentserve.core import remembered
from agentserve.core.forecast import Calibration, OutputForecaster
from agentserve.core.remembered import RememberedOutputs, SampledCalibration


def test_a_kept_forecast_stays_close_to_one_made_anew() -> None:
    plain, kept = OutputForecaster(), RememberedOutputs(OutputForecaster(), quantile=0.75)
    for n in range(400):
        tokens = 100 + n % 7 if n < 200 else 800 + n % 5
        for forecaster in (plain, kept):
            forecaster.predict(tenant="t", role=1, program=f"p{n % 9}")
            forecaster.observe(tenant="t", role=1, program=f"p{n % 9}", tokens=tokens)
    for program in ("p0", "p5"):
        anew = plain.predict(tenant="t", role=1, program=program).quantile(0.75)
        assert kept.predict(tenant="t", role=1, program=program).quantile(0.75) == pytest.approx(
            anew, rel=0.15
        )


def test_a_program_never_seen_is_foretold_what_its_kind_is() -> None:
    kept = RememberedOutputs(OutputForecaster(), quantile=0.75)
    for n in range(50):
        kept.observe(tenant="t", tokens=300, program=f"p{n}")
    fresh = kept.predict(tenant="t", program="new")
    assert fresh is kept.predict(tenant="t", program="newer")
    assert 200 < fresh.quantile(0.5) < 400


def test_a_step_is_charged_the_quantile_of_its_programs_forecast_and_a_new_ones_that_of_its_kind() -> None:
    kept = RememberedOutputs(OutputForecaster(), quantile=0.75)
    for n in range(60):
        kept.observe(tenant="t", tokens=2_000 if n % 2 else 100, program=("long", "short")[n % 2 == 0])

    def charged(program: str) -> float:
        return kept.tokens(tenant="t", workflow=None, role=0, tokens_max=None, program=program)

    for program in ("long", "short", "new"):
        assert charged(program) == pytest.approx(
            kept.predict(tenant="t", program=program).quantile(0.75), rel=0.15
        )
    assert charged("short") < charged("new") <= charged("long") * 1.1


def test_the_first_outcomes_change_the_very_next_forecast() -> None:
    kept = RememberedOutputs(OutputForecaster(), quantile=0.75)
    before = kept.predict(tenant="t").quantile(0.5)
    kept.observe(tenant="t", tokens=5000)
    assert kept.predict(tenant="t").quantile(0.5) > before


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "ANSWERS_MAX", 10)
    kept = RememberedOutputs(OutputForecaster(), quantile=0.75)
    for n in range(50):
        kept.observe(tenant="t", tokens=100, program=f"p{n}")
    assert len(kept._programs) == 10


def test_a_program_that_is_over_leaves_nothing_of_its_own_behind() -> None:
    learned = OutputForecaster()
    kept = RememberedOutputs(learned, quantile=0.75)
    kept.observe(tenant="t", role=1, tokens=100, program="first")
    kept.forget_program("first")
    level = len(learned)
    for n in range(50):
        for role in (1, 2):
            kept.observe(tenant="t", role=role, tokens=100, program=f"p{n}")
            kept.predict(tenant="t", role=role, program=f"p{n}")
        kept.forget_program(f"p{n}")
    assert len(learned) == level + 2  # of the second role: what its kind writes, and here
    assert kept.predict(tenant="t", role=1, program="new").quantile(0.5) == pytest.approx(100, rel=0.5)


def test_a_sampled_calibration_comes_to_the_same_figures() -> None:
    whole, sampled = Calibration(), SampledCalibration()
    forecaster = OutputForecaster()
    for n in range(1600):
        forecast = forecaster.predict(tenant="t")
        tokens = 50 + (n * 37) % 400
        whole.observe(forecast, float(tokens))
        if sampled.due():
            sampled.observe(forecast, float(tokens))
        forecaster.observe(tenant="t", tokens=tokens)
    assert sampled.numbers()["coverage_p90"] == pytest.approx(whole.numbers()["coverage_p90"], abs=0.08)
