"""Fitting a profile to timed iterations."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from agentserve.engine import Sample, fit, fit_error, profile
from agentserve.errors import UsageError

SHAPES = [
    *((n, before, 0, 0) for n in (512, 2048, 8192) for before in (0, 16_000, 64_000)),
    *((0, 0, batch, batch * context) for batch in (1, 8, 64, 256) for context in (200, 4000)),
    (1024, 8000, 32, 64_000),
]


def measured(noise: float = 0.0, **factors: Any) -> list[Sample]:
    rng = random.Random(7)
    real = replace(profile("llama-3.1-8b-h100"), **factors)
    out = []
    for n, before, decodes, context in SHAPES:
        blank = Sample(
            prefill_tokens=n, prefill_context=before, decodes=decodes, decode_context=context, seconds=1.0
        )
        out.append(replace(blank, seconds=blank.predicted_s(real) * (1 + noise * rng.uniform(-1, 1))))
    return out


@pytest.mark.parametrize("mfu", [0.3, 0.62])
@pytest.mark.parametrize("mbu", [0.5, 0.88])
def test_known_factors_are_recovered(mfu: float, mbu: float) -> None:
    samples = measured(mfu=mfu, mfu_attention=0.35, mbu=mbu, overhead_s=0.002)
    found = fit(profile("llama-3.1-8b-h100"), samples)
    assert found.mfu == pytest.approx(mfu, rel=1e-3)
    assert found.mfu_attention == pytest.approx(0.35, rel=1e-3)
    assert found.mbu == pytest.approx(mbu, rel=1e-3)
    assert found.overhead_s == pytest.approx(0.002, rel=1e-2)
    assert fit_error(found, samples) < 1e-4


def test_noise_of_five_percent_moves_the_factors_little() -> None:
    samples = measured(noise=0.05, mfu=0.4, mbu=0.6)
    found = fit(profile("llama-3.1-8b-h100"), samples)
    assert found.mfu == pytest.approx(0.4, rel=0.08)
    assert found.mbu == pytest.approx(0.6, rel=0.08)
    assert fit_error(found, samples) < 0.05


def test_a_factor_that_no_sample_speaks_of_is_kept() -> None:
    decodes = [s for s in measured(mbu=0.6, mfu_attention=0.2) if not s.prefill_tokens and s.decodes < 64]
    found = fit(profile("llama-3.1-8b-h100"), decodes)
    assert found.mbu == pytest.approx(0.6, rel=1e-3)
    assert found.mfu_attention == pytest.approx(0.5)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UsageError):
        fit(profile("llama-3.1-8b-h100"), measured()[:3])
